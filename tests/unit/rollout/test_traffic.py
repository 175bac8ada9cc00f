"""Calls through a target group, to a target that does what targets do at their end."""

import asyncio

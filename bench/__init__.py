"""What ghealth costs beside others, and what it saves in a rollout."""

"""The admin port: status page, history, metrics and health over HTTP."""

from ghealth.admin.routes import Admin

__all__ = ["Admin"]

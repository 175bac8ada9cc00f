"""What people and checks run beside ghealth: the local gateway, the lock, the tables."""

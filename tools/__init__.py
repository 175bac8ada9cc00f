"""What people and make run beside ghealth: `make run`, the lock, the tables, the mutants."""

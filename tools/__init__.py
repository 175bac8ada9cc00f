"""Programs for developers: `make run`, the lock, the tables, the mutants, the prose check."""

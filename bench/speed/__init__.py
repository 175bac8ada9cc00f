"""ghealth beside what people would run instead, in one run, on one machine."""

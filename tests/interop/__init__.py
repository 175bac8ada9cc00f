"""Real callers against a real ghealth beside a real Envoy: what does each of them conclude?"""

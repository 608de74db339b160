"""Structure goes: layers, heads, neurons. What is left is dense and smaller, so every runtime runs it faster."""

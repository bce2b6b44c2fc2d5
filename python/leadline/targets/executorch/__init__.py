"""ExecuTorch: ``.pte`` programs for XNNPACK, run in its own runtime."""

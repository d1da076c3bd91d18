"""An OpenAI-compatible endpoint: requests become tasks, leases become streams."""

"""Running an LLM split over device, edge nodes and cloud: the only room that knows torch (extra `[llm]`)."""

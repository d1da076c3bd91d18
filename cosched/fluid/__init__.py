"""The fluid execution model of replay: what a plan comes to on the channel and load that the trace shows next."""

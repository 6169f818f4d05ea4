"""Two prompts that differ in one thing: the metric that tells them apart, and their alignment."""

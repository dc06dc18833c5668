"""The machines a frame can be drawn on: each backend has one `run(inputs)`."""

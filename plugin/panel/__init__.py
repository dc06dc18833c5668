"""The local web page: enrol, preview, controls, numbers."""

import sys
from typing import Any

# Importing OpenVINO would report that to Google Analytics, unasked. What it then falls back to reports nothing.
modules: dict[str, Any] = sys.modules
modules.setdefault("openvino_telemetry", None)
del modules

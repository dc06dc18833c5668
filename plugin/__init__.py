import engine as engine  # before anything that imports OpenVINO

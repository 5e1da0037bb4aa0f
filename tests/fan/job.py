"""A job for tests: `python -m job FOLDER STEPS`. Takes steps as training does, and can be orders to misbehave."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, last = Path(sys.argv[1]), int(sys.argv[2])
orders = json.loads((folder / "orders.json").read_text()) if (folder / "orders.json").exists() else {}
signal.signal(signal.SIGTERM, signal.default_int_handler)
metrics = folder / "metrics.jsonl"
step = metrics.read_text().count("\n") if metrics.exists() else 0
(folder / f"process-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
LINE = {"loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "tokens": 1, "computed": 1, "supervised": 1.0, "seconds": 0.1}
try:
    while step < last:
        if orders.get("killed_at") == step or (orders.get("killed_once_at") == step and not (folder / "once").exists()):
            (folder / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if orders.get("error_at") == step:
            error = {"code": "TRAIN_NOT_FINITE", "message": "NaN", "where": "w", "fix": "f"}
            sys.stderr.write(json.dumps({"error": [error]}) + "\n")
            sys.exit(1)
        step += 1
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, **LINE}) + "\n")
        time.sleep(orders.get("seconds", 0.0))
except KeyboardInterrupt:
    (folder / "saved").touch()
    sys.exit(130)

"""The worker's own program, which writes a line to FILE whenever its model is traced: `traced_worker.py FILE run`.

A compiled model runs without Keras; Keras is called again only to compile another shape.
"""

import sys
from pathlib import Path
from typing import Any

# In place of this folder.
sys.path[0] = str(Path(__file__).parents[2])

from worker.__main__ import main  # noqa: E402
from worker.adapters.keras_scorer import select_backend  # noqa: E402

PROGRAM = Path(__file__)

if __name__ == "__main__":
    select_backend("tensorflow")
    import keras

    call, file = keras.Model.__call__, Path(sys.argv[1])

    def counted(self: Any, *arguments: Any, **more: Any) -> Any:
        with file.open("a", encoding="ascii") as lines:
            lines.write("traced\n")
        return call(self, *arguments, **more)

    keras.Model.__call__ = counted
    sys.exit(main(sys.argv[2:]))

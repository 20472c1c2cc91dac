"""What `import cora` costs and gives."""

import subprocess
import sys


def test_data_does_not_wait_for_the_models_of_transformers() -> None:
    code = """
import sys, cora.data
print("transformers.modeling_utils" in sys.modules)
import cora, cora.llm.patch
print(callable(cora.patch), cora.CoRAModel.__name__, cora.CoRAConfig.__name__, cora.Patch.__name__)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True", "CoRAModel", "CoRAConfig", "Patch"]

"""coremltools is imported without what it does not need, and nothing else is changed by that."""

import json
import subprocess
import sys

SCRIPT = """
import json, sys
from pipeline.backends.coreml import library
from pipeline.quiet import quiet

with quiet():
    first = library.load()
    import coremltools
    import sklearn.cluster
print(json.dumps([first is coremltools, "torchvision" in sys.modules, coremltools.converters is not None]))
"""


def test_what_it_looks_for_is_not_imported_and_can_be_afterwards():
    """In a process of its own: others have imported it here."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, False, True]


MESSAGES = """
import json, sys
from pipeline.backends.coreml import library
from pipeline.quiet import quiet

with quiet():
    first = library.load_messages().Model_pb2.Model
    light = "coremltools" not in sys.modules and "coremltools.converters" not in sys.modules
    import coremltools
    from coremltools.proto import Model_pb2
    whole = coremltools.proto.Model_pb2.Model is Model_pb2.Model is first is library.load_messages().Model_pb2.Model
    saved = coremltools.models.MLModel  # of the real package
print(json.dumps([light, whole]))
"""


def test_messages_come_without_the_package_and_are_the_same_with_it():
    done = subprocess.run([sys.executable, "-c", MESSAGES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, True]


def test_what_was_imported_before_stays():
    import sklearn

    from pipeline.backends.coreml import library
    from pipeline.quiet import quiet

    with quiet():
        assert library.load() is library.load()
    assert sys.modules["sklearn"] is sklearn

import copy
import platform

import numpy as np
import pytest
import torch

from pipeline.backends.coreml import backend, packages
from pipeline.errors import InputError

CLASSES = 5


@pytest.fixture(scope="module")
def session_packages(programs, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions")
    wanted = {
        "fp32": ("fused", spec("fp32")),
        "fp16": ("fused", spec("fp16")),
        "branched": ("branched", spec("fp32")),
        "ends": ("fused", spec("fp16", normalization=True, class_labels=True)),
        "ends32": ("fused", spec("fp32", normalization=True, class_labels=True)),
    }
    files = {name: folder / f"{name}.mlpackage" for name in wanted}
    for name, (form, one) in wanted.items():
        backend.export(programs[form], [files[name]], one)
    return files


@pytest.fixture(scope="module")
def rounded(programs):
    """The fused network with its weights rounded to half precision."""
    network = copy.deepcopy(programs["fused"].module())
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    return network


def worst(given, expected):
    expected = expected.detach().numpy()
    assert given.shape == expected.shape == (1, CLASSES) and given.dtype == np.float32
    return np.abs(given - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("form", ["fused", "branched"])
def test_a_float32_file_is_the_program(session_packages, programs, image, form):
    file = session_packages["fp32" if form == "fused" else form]
    expected = programs[form].module()(image)
    for session in (backend.open_exact_session(file, 1), backend.open_check_session(file, 1)):
        assert worst(session(image.numpy())[0], expected) < 1e-5


def test_a_float16_file_in_float32_arithmetic_is_the_program_with_rounded_weights(session_packages, rounded, image):
    given = backend.open_exact_session(session_packages["fp16"], 1)(image.half().float().numpy())[0]
    assert worst(given, rounded(image.half().float())) < 1e-5


def test_a_float16_file_in_its_own_arithmetic_loses_a_little(session_packages, programs, image):
    given = backend.open_check_session(session_packages["fp16"], 1)(image.numpy())[0]
    assert 1e-6 < worst(given, programs["fused"].module()(image)) < 1e-2
    assert np.array_equal(given, given.astype(np.float16))


def test_images_and_labels(session_packages, programs, spec, image):
    """The normalized input becomes pixels, whole ones in the file's own arithmetic; probabilities become logits."""
    about = spec().preprocessing
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (about.mean, about.std))
    network = programs["fused"].module()
    exact = backend.open_exact_session(session_packages["ends32"], 1)(image.numpy())[0]
    assert worst(exact, network(image).log_softmax(-1)) < 1e-5
    whole = ((image * std + mean) * 255).round().clamp(0, 255)
    expected = network((whole / 255 - mean) / std).log_softmax(-1)
    assert worst(backend.open_check_session(session_packages["ends32"], 1)(image.numpy())[0], expected) < 1e-5
    assert 1e-6 < worst(backend.open_check_session(session_packages["ends"], 1)(image.numpy())[0], expected) < 1e-2


def test_labels_come_in_the_order_of_the_classes(session_packages, spec, image):
    """Whatever order the package lists them in."""
    given = backend.open_exact_session(session_packages["ends32"], 1)(image.numpy())[0]
    file = session_packages["ends32"] / "Data/com.apple.CoreML/model.mlmodel"
    written = file.read_bytes()
    model = packages.read(session_packages["ends32"])
    about = model.description.metadata.userDefined
    about["preprocessing"] = about["preprocessing"].replace('["class 0", "class 1"', '["class 1", "class 0"')
    try:
        file.write_bytes(model.SerializeToString())
        turned = backend.open_exact_session(session_packages["ends32"], 1)(image.numpy())[0]
    finally:
        file.write_bytes(written)
    assert np.array_equal(turned, given[:, [1, 0, 2, 3, 4]]) and not np.array_equal(turned, given)


def test_a_package_that_does_not_say_how_to_feed_it_is_refused(session_packages, image):
    file = session_packages["ends"] / "Data/com.apple.CoreML/model.mlmodel"
    written = file.read_bytes()
    model = packages.read(session_packages["ends"])
    del model.description.metadata.userDefined["preprocessing"]
    try:
        file.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=r"does not say how: its metadata has no `preprocessing`"):
            backend.open_check_session(session_packages["ends"], 1)
    finally:
        file.write_bytes(written)


def test_a_file_of_several_inputs_takes_their_numbers_one_after_the_other(written):
    x = np.zeros((1, 3), np.float32)
    two_in = written(lambda mb, x, y: mb.sub(x=x, y=y), x, x, name="two_in")
    for session in (backend.open_check_session(two_in, 1), backend.open_exact_session(two_in, 1)):
        assert session(np.array([[7, 8, 9, 1, 2, 4]], np.float32))[0].tolist() == [[6, 6, 5]]
        with pytest.raises(InputError, match=r"two_in\.mlpackage takes inputs of shapes .*, samples of \(1, 6\)"):
            session(x)


def test_outputs_come_in_the_order_of_the_program(written):
    x = np.array([[-1, 0, 2]], np.float32)
    file = written(lambda mb, x: [mb.relu(x=x), mb.exp(x=x)], x, name="two_out")
    first, second = backend.open_exact_session(file, 1)(x)
    assert np.array_equal(first, np.maximum(x, 0)) and np.allclose(second, np.exp(x))


def test_layers_have_the_names_of_the_programs_nodes(session_packages, programs, image):
    """Each is what the node of that name gives, to the file's precision."""
    for name, form in (("fp16", "fused"), ("branched", "branched")):
        program = programs[form].run_decompositions({})
        found = backend.outputs_by_layer(session_packages[name], image.numpy())
        assert list(found)[-1] == "logits"
        values = {}

        class Recorder(torch.fx.Interpreter):
            def run_node(self, node):
                result = super().run_node(node)
                values[node.name] = result[0] if isinstance(result, tuple) else result  # noqa: B023
                return result

        Recorder(program.module()).run(image)
        compared = [key for key in found if isinstance(values.get(key), torch.Tensor)]
        assert set(found) - set(compared) <= {"logits", "image"}, f"{form}: {list(found)}"
        assert len(compared) >= 8
        for key in compared:
            expected = values[key].detach().numpy()
            assert np.abs(found[key] - expected).max() <= 1e-2 * np.abs(expected).max(), key


def test_layers_in_either_arithmetic(session_packages, image):
    own = backend.outputs_by_layer(session_packages["fp16"], image.numpy())
    exact = backend.outputs_by_layer(session_packages["fp16"], image.numpy(), exact=True)
    assert list(own) == list(exact)
    assert np.array_equal(own["relu_1"], own["relu_1"].astype(np.float16))
    assert not np.array_equal(exact["relu_1"], exact["relu_1"].astype(np.float16))


def test_threads_are_set(session_packages, image):
    before = torch.get_num_threads()
    try:
        backend.open_check_session(session_packages["fp32"], 2)
        assert torch.get_num_threads() == 2
        backend.open_check_session(session_packages["fp32"], 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_by_what_a_file_is_checked_here():
    on_a_mac = platform.system() == "Darwin"
    assert backend.BACKEND.checked_by == ("Core ML" if on_a_mac else "evaluator of ML programs")

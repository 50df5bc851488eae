"""Export a program as an ML program with coremltools; the bytes of the package depend only on the program."""

import gc
import json
import shutil
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import documents
from pipeline.artifacts.manifest import ExportSpec, versions
from pipeline.backends.coreml import compression, library, packages, runtime
from pipeline.backends.coreml.options import Options
from pipeline.errors import InputError, StageError
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import torch

LABEL, PROBABILITIES = "label", "probabilities"
_LAYOUTS = {"RGB": "RGB", "BGR": "BGR", "gray": "GRAYSCALE"}
_MODEL, _WEIGHTS = "com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"


def export(program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> dict[str, Any]:
    """Convert a program and write it as a package, the same bytes for the same program.

    Args:
        program: float32, of static shape ``spec.input_shape``.
        files: where the one .mlpackage, a folder, goes; what stands there is replaced.
        spec: the options are ``minimum_deployment_target``; ``normalization``: the input is an image
            of 0..255 and ``(x - 255 mean) / (255 std)`` is part of the network; ``class_labels``: instead
            of logits a softmax leaves, as ``label`` (the best class) and ``label_probs`` (all of them);
            ``compute_units``, ``device`` and ``development_team`` are noted in the package for those who run it.

    Returns:
        ``maker``, ``version``, ``minimum_deployment_target``, ``specification_version``, and the names
        and kinds of the ``inputs`` and ``outputs``; where weights are compressed ``left_in_float16``, the layers
        whose weights are not.

    Raises:
        InputError: an option that does not fit the network or the precision.
        StageError: coremltools cannot convert an operation.
    """
    options = {**Options().model_dump(mode="json"), **spec.options}
    _check_options(program, spec, options)
    is_compressed = spec.precision in compression.OLDEST_TARGET
    if spec.precision == "palette6":
        print("palette6: k-means of each layer's weights, about a second for a million of them", flush=True)
    with quiet(), compression.repeatable(spec.precision):
        coremltools = library.load()
        import numpy

        network = _with_ends(program, spec, options)
        kinds = [coremltools.TensorType(name, shape, dtype=numpy.float32) for name, shape in spec.inputs.items()]
        if options["normalization"]:
            layout = getattr(coremltools.colorlayout, _LAYOUTS[spec.preprocessing.color_order])
            kinds = [coremltools.ImageType(spec.input_name, spec.input_shape, color_layout=layout)]
        labels, outputs = None, spec.output_names
        if options["class_labels"]:
            labels = coremltools.ClassifierConfig(list(spec.preprocessing.classes), predicted_feature_name=LABEL)
            outputs = (PROBABILITIES,)
        precision = coremltools.precision.FLOAT32 if spec.precision == "fp32" else coremltools.precision.FLOAT16
        try:
            model = coremltools.convert(
                _spelled_out(network.run_decompositions({})),
                convert_to="mlprogram",
                inputs=kinds,
                outputs=[coremltools.TensorType(name, dtype=numpy.float32) for name in outputs],
                classifier_config=labels,
                minimum_deployment_target=getattr(coremltools.target, options["minimum_deployment_target"]),
                compute_precision=precision,
                pass_pipeline=_passes(spec.precision, network),
                skip_model_load=True,
            )
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold temporary folders
            gc.collect()
            raise StageError(
                f"coremltools cannot convert the network: {' '.join(str(error).split())[:300].rstrip('.')}. "
                f"Replace the operation in the network, or leave this target out."
            ) from error
        shutil.rmtree(files[0], ignore_errors=True)
        model.save(str(files[0]))
        del model
        gc.collect()  # the converter's temporary folders warn when they go, so they go while it is quiet
    written = _make_reproducible(files[0], spec, options)
    facts = {"left_in_float16": compression.require_compressed(files[0], spec.precision)} if is_compressed else {}
    return facts | {
        "maker": "coremltools",
        "version": versions("coremltools")["coremltools"],
        "minimum_deployment_target": options["minimum_deployment_target"],
        "specification_version": written.specificationVersion,
        "inputs": {one.name: one.type.WhichOneof("Type") for one in written.description.input},
        "outputs": {one.name: one.type.WhichOneof("Type") for one in written.description.output},
    }


def _check_options(program: "torch.export.ExportedProgram", spec: ExportSpec, options: dict[str, Any]) -> None:
    compression.require_target(spec.precision, options["minimum_deployment_target"])
    if options["normalization"] and spec.preprocessing.inputs:
        raise InputError(
            f"`normalization` is for networks of one image, and this one takes {' and '.join(spec.inputs)}. Set "
            "`normalization: false` in the target's options."
        )
    if options["normalization"] and spec.input_shape[0] != 1:
        raise InputError(
            f"Core ML takes one image at a time, but `batch` is {spec.input_shape[0]}. Set `batch: 1`, or "
            f"`normalization: false`, in the target's options."
        )
    if not options["class_labels"]:
        return
    classes = program.graph.output_node().args[0][0].meta["val"].shape[-1]
    if len(spec.preprocessing.classes) != classes:
        raise InputError(
            f"`class_labels` is set, and the data has {len(spec.preprocessing.classes)} classes, but the "
            f"network has {classes} outputs. Train the network on this data, or set `class_labels: false`."
        )


def _with_ends(
    program: "torch.export.ExportedProgram", spec: ExportSpec, options: dict[str, Any]
) -> "torch.export.ExportedProgram":
    """The program with what the options put in front of it and behind it."""
    if not options["normalization"] and not options["class_labels"]:
        return program
    import torch

    class WithEnds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = program.module()
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in _mean_and_std(spec))
            self.register_buffer("mean255", 255 * mean)
            self.register_buffer("inv_std255", 1 / (255 * std))

        def forward(self, *inputs: torch.Tensor) -> Any:
            if options["normalization"]:
                (image,) = inputs
                # Not `image * a + b`: coremltools would make it a batch norm, and add an epsilon.
                inputs = ((image - self.mean255) * self.inv_std255,)
            given = self.network(*inputs)
            return given.softmax(-1) if options["class_labels"] else given

    return torch.export.export(WithEnds(), tuple(map(torch.zeros, spec.inputs.values())))


def _passes(precision: str, network: "torch.export.ExportedProgram") -> Any:
    """coremltools' own passes but for some that err, as of 9.0; what compresses weights comes last.

    One negates in place a constant that is taken off a convolution: where a network adds the same constant elsewhere,
    as DBB does around its padding, its file would be wrong. One divides the scales around an int8 sum by that of its
    second summand, which saves the phone a product: the quotients are rounded to half once more, and a network of many
    sums then gives other integers than the program that was verified. Those that take a batch norm, or a factor, into
    the convolution before it mix up the channels of a transposed convolution of several groups.
    """
    import coremltools

    passes = coremltools.PassPipeline.DEFAULT
    passes.remove_passes({"common::fuse_conv_bias", "common::distributive_quantized_binary_op_scale_normalization"})
    if any(map(_is_grouped_and_transposed, network.graph.nodes)):
        passes.remove_passes({"common::fuse_conv_batchnorm", "common::fuse_conv_scale"})
    compression.add_pass(passes, precision)
    return passes


def _is_grouped_and_transposed(node: "torch.fx.Node") -> bool:
    from repnets.fusion.graph import arguments

    return str(node.target).startswith("aten.conv_transpose") and arguments(node)["groups"] > 1


def _spelled_out(program: "torch.export.ExportedProgram") -> "torch.export.ExportedProgram":
    """Drop second names of a tensor, and give each pool its stride: coremltools 9.0 knows neither the one nor the
    default of the other."""
    import torch

    aten = torch.ops.aten
    pools = {getattr(aten, f"{kind}_pool{rank}d").default for kind in ("max", "avg") for rank in (1, 2, 3)}
    for node in list(program.graph.nodes):
        if node.target is aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
        elif node.target in pools and not any(node.args[2:3]):
            node.args = (*node.args[:2], node.args[1], *node.args[3:])
    return program


def _mean_and_std(spec: ExportSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return spec.preprocessing.mean, spec.preprocessing.std


def _make_reproducible(package: Path, spec: ExportSpec, options: dict[str, Any]) -> Any:
    """Rewrite what differs between two conversions of one program, and give it the project's metadata.

    The Manifest is written as Core ML's own library does, which rewrites it whenever a package is loaded.
    """
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    written = packages.read(package)
    about = written.description.metadata
    about.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    classes = len(spec.preprocessing.classes)
    about.shortDescription = (
        f"Image classifier, {classes} classes, {spec.precision}" if classes else f"Network of images, {spec.precision}"
    )
    about.userDefined["precision"] = spec.precision
    about.userDefined["preprocessing"] = json.dumps(documents.plain(spec.preprocessing))
    about.userDefined["normalization"] = "inside" if options["normalization"] else "outside"
    for name in runtime.HOW:
        about.userDefined[name] = options[name] or ""
    (package / "Data" / _MODEL).write_bytes(written.SerializeToString(deterministic=True))
    parts = {_MODEL: "CoreML Model Specification", _WEIGHTS: "CoreML Model Weights"}
    document = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            _identifier(path): {
                "author": "com.apple.CoreML",
                "description": what,
                "name": Path(path).name,
                "path": path,
            }
            for path, what in parts.items()
        },
        "rootModelIdentifier": _identifier(_MODEL),
    }
    (package / "Manifest.json").write_text(json.dumps(document, indent=4, sort_keys=True) + "\n")
    for path in (package, *package.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return written


def _identifier(path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, path)).upper()

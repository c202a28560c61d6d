"""What runs a model: TensorFlow, JAX or OpenVINO, in float32 or bfloat16, as a manifest's `serving` names it.

Rules: a compiled model takes padded batches of the sizes it was made for, and no other; uint8 goes to the device,
float32 comes back; what a manifest names is used, or refused, never replaced by something near it, or replicas would
judge differently. In bfloat16 the convolutions and dense layers alone are computed in it, their weights stay float32
in the archive; errors, pooling and scores are float32. OpenVINO chooses the layers itself, of which calibration and
golden images know no more than that the scores agree.

Import this module lazily: what it works with takes seconds to import. Call keras_scorer.select_backend() before.
"""

import platform
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.bundle import Serving
from worker.core.errors import BundleError

BACKENDS = ("tensorflow", "jax", "openvino")
"""What a manifest may name. OpenVINO runs what Keras on TensorFlow has loaded."""
NATIVE_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Processors with one of them compute bfloat16 faster than float32; others emulate it, several times slower."""
SCORE_LAYER = "score_"
"""How the names of layers begin that make the score of what the network gives: they are float32 in any precision."""
AMPERE = 8
"""The first compute capability of NVIDIA's that has bfloat16."""

Finish = Callable[[], list[NDArray[np.float32]]]
"""Waits for a batch and returns its outputs."""
Compiled = Callable[[NDArray[np.uint8]], Finish]
"""Starts a padded batch, uint8 (size, H, W, C). Where the device works by itself (a GPU) it returns before the batch
is done; the images may be changed as soon as it returns."""


def keras_backend(backend: str) -> str:
    """The Keras backend that loads a model for `backend`.

    Raises:
        BundleError: it is none of ours.
    """
    if backend not in BACKENDS:
        raise BundleError(f"the bundle wants the backend '{backend}'; known are {', '.join(BACKENDS)}.")
    return "tensorflow" if backend == "openvino" else backend


def import_openvino() -> Any:
    """OpenVINO, which sends nothing to anybody.

    Raises:
        BundleError: it is not installed.
    """
    # Its import reports to the maker's statistics, and makes a folder in the home, unless that package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: an import of it fails
    try:
        import openvino  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise BundleError(
            f"OpenVINO is wanted, and not installed ({error}): install the extra 'openvino' "
            "(pip install 'reconstream[openvino]'), or fit with --scorer keras."
        ) from error
    return openvino


def openvino_core() -> Any:
    """OpenVINO's Core, the only one of this process.

    Raises:
        BundleError: OpenVINO is not installed.
    """
    import_openvino()
    return _the_core()


@cache
def _the_core() -> Any:
    # Each Core's CPU plugin gives its thread an alternate stack for signals, and its end puts back the one before it.
    # With several that end out of order, as in a reload, that one is gone, and the next SIGTERM a segmentation fault.
    return import_openvino().Core()


def native_bfloat16(backend: str) -> bool:
    """Whether what `backend` runs on has instructions for bfloat16: AVX512-BF16, AMX-BF16, or a GPU that has it."""
    if backend == "openvino":
        has_it: bool = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return has_it and bool(NATIVE_FLAGS & cpu_flags())
    if backend == "jax":
        import jax  # noqa: PLC0415 - only with this backend

        device = jax.devices()[0]
        if device.platform == "cpu":
            return bool(NATIVE_FLAGS & cpu_flags())
        capability = str(getattr(device, "compute_capability", ""))
        return device.platform == "tpu" or (capability[:1].isdigit() and float(capability) >= AMPERE)
    import tensorflow as tf  # noqa: PLC0415 - only with this backend

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return bool(NATIVE_FLAGS & cpu_flags())
    found: tuple[int, int] = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
    return found[0] >= AMPERE


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's features as Linux names them; none where it is not Linux."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split()[2:]) for line in lines if line.startswith("flags")), frozenset())


def check_serving(serving: Serving) -> None:
    """Refuse what this machine cannot serve. After select_backend().

    Raises:
        BundleError: OpenVINO is missing, or bfloat16 is not native here.
    """
    if serving.backend == "openvino":
        import_openvino()
    if serving.precision == "bfloat16" and not native_bfloat16(serving.backend):
        raise BundleError(
            f"bfloat16 on {serving.backend} is wanted, and this machine has no instructions for it (AVX512-BF16, "
            "AMX-BF16, or a GPU of compute capability 8.0); another precision would judge differently. Serve the "
            "bundle where there are some, or fit with --precision float32."
        )


def in_bfloat16(model: Any) -> Any:
    """A copy of a Keras model that computes its convolutions and dense layers in bfloat16; weights stay float32."""
    import keras  # noqa: PLC0415 - takes seconds, and only after select_backend

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for layer in _layers(copy):
        # By their kernels: that is what convolutions and dense layers have in common. Flatten and Reshape only pass
        # values on; in float32 they would convert them to and fro.
        computes = hasattr(layer, "kernel") and not layer.name.startswith(SCORE_LAYER)
        if computes or isinstance(layer, (keras.layers.Flatten, keras.layers.Reshape)):
            layer.dtype_policy = "mixed_bfloat16"
    return copy


def _layers(model: Any) -> Iterator[Any]:
    """A model's layers, those of models within it in their place."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        else:
            yield layer


def compile_model(
    model: Any, shape: tuple[int, int, int], outputs: tuple[str, ...], sizes: tuple[int, ...], serving: Serving
) -> Compiled:
    """A function of padded batches that returns the named outputs.

    Args:
        model: a Keras model with a dict of outputs; those that are not named are not computed.
        shape: (H, W, C) of the images.
        outputs: names of the wanted ones.
        sizes: of the batches; each is compiled now (TensorFlow, OpenVINO) or when it first comes (JAX).
        serving: what runs it, and in which precision.

    Raises:
        BundleError: OpenVINO is not installed, or does not compute in that precision here.
    """
    import keras  # noqa: PLC0415 - takes seconds, and only after select_backend

    low = serving.precision == "bfloat16"
    if low and serving.backend != "openvino":
        model = in_bfloat16(model)
    pruned = keras.Model(model.inputs, {name: model.output[name] for name in outputs})
    if serving.backend == "jax":
        return _compile_jax(pruned, outputs)
    if serving.backend == "openvino":
        return _compile_openvino(pruned, shape, outputs, sizes, serving.precision)
    return _compile_tensorflow(pruned, shape, outputs, sizes)


def _forward(model: Any) -> Any:
    """A tf.function of a batch of any size that gives float32."""
    import keras  # noqa: PLC0415 - see compile_model
    import tensorflow as tf  # noqa: PLC0415 - see compile_model

    def forward(image: Any) -> dict[str, Any]:
        found = model(image, training=False)
        return {name: keras.ops.cast(tensor, "float32") for name, tensor in found.items()}

    return tf.function(forward, autograph=False)


def _compile_tensorflow(
    model: Any, shape: tuple[int, int, int], outputs: tuple[str, ...], sizes: tuple[int, ...]
) -> Compiled:
    import tensorflow as tf  # noqa: PLC0415 - see compile_model

    function = _forward(model)
    # Concrete functions cannot trace again: an unexpected size is an error instead of a slow surprise.
    traces = {size: function.get_concrete_function(tf.TensorSpec((size, *shape), tf.uint8)) for size in sizes}

    def start(images: NDArray[np.uint8]) -> Finish:
        tensors = traces[len(images)](tf.constant(images))
        return lambda: [tensors[name].numpy() for name in outputs]

    return start


def _compile_jax(model: Any, outputs: tuple[str, ...]) -> Compiled:
    import jax  # noqa: PLC0415 - only with this backend

    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    def forward(images: Any) -> dict[str, Any]:
        found = model.stateless_call(trainable, fixed, images, training=False)[0]
        return {name: tensor.astype("float32") for name, tensor in found.items()}

    function = jax.jit(forward)

    def start(images: NDArray[np.uint8]) -> Finish:
        # A copy: on a CPU JAX reads the array itself, perhaps after start() has returned.
        arrays = function(images.copy())
        return lambda: [np.asarray(arrays[name]) for name in outputs]

    return start


def _compile_openvino(
    model: Any, shape: tuple[int, int, int], outputs: tuple[str, ...], sizes: tuple[int, ...], precision: str
) -> Compiled:
    import tensorflow as tf  # noqa: PLC0415 - see compile_model

    openvino, core = import_openvino(), openvino_core()
    graph = openvino.convert_model(_forward(model).get_concrete_function(tf.TensorSpec((None, *shape), tf.uint8)))
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    requests: dict[int, Any] = {}
    for size in sizes:
        graph.reshape([size, *shape])
        compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"})
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != hint:  # where a processor lacks one, OpenVINO takes another without a word
            raise BundleError(f"OpenVINO computes in {used} on this processor, the bundle wants {precision}.")
        requests[size] = compiled.create_infer_request()

    def start(images: NDArray[np.uint8]) -> Finish:
        request = requests[len(images)]
        request.infer([images], share_inputs=True)
        # Copied: the request's own memory holds the next batch's results soon.
        found = [request.get_tensor(name).data.copy() for name in outputs]
        return lambda: found

    return start


def device(backend: str) -> tuple[str, str]:
    """Kind (`CPU`, `GPU`) and name of the device that `backend` runs on."""
    if backend == "openvino":
        return "CPU", str(openvino_core().get_property("CPU", "FULL_DEVICE_NAME")).strip()
    if backend == "jax":
        import jax  # noqa: PLC0415 - only with this backend

        first = jax.devices()[0]
        return str(first.platform).upper(), str(first.device_kind)
    import tensorflow as tf  # noqa: PLC0415 - takes seconds, and only with this backend

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU", platform.processor() or platform.machine()
    return "GPU", str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name))


def prepare_device() -> None:
    """Set the selected backend up for serving, before the first model is loaded.

    On a GPU memory is taken as it is needed, or the first process would take all of it; TF32 is off, since its
    rounding is larger than the tolerance of float32.
    """
    import keras  # noqa: PLC0415 - takes seconds, and only after select_backend

    if keras.backend.backend() == "jax":
        import jax  # noqa: PLC0415 - only with this backend

        jax.config.update("jax_default_matmul_precision", "highest")
        return
    import tensorflow as tf  # noqa: PLC0415 - takes seconds, and only with this backend

    tf.config.experimental.enable_tensor_float_32_execution(enabled=False)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, enable=True)

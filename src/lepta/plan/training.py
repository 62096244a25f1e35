"""What one stage of pre-training costs: weights that train, operations, memory of a GPU. Formulas: docs/plan.md."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Literal

from lepta.plan.shapes import Shape
from lepta.training.settings import Lora, PretrainSettings

Sharding = Literal["one process", "DDP", "FSDP2"]
Change = dict[str, int | bool | str]  # settings that are to be others
GIB = 2**30
LOGITS = 1 << 26  # bytes of logits that exist at the same time: lepta.models.loss
PACKED = {"4bit": 0.5 + 4 / 64, "8bit": 1}  # bytes of a weight; of 4 bits, with a float32 scale for every 64
MASTER, GRADIENT, ADAM = 4, 4, 8  # bytes of a trained weight, all float32
GATHERED_LAYERS = 2  # FSDP2: the layer at work and the next one
CONTEXT = 1.5 * GIB  # of CUDA, cuBLAS and NCCL
CPU_OVERHEAD = 0.5 * GIB
FRAGMENTS = 0.05  # of everything else
OLD_TOKENS = 2.0  # that a teacher reads for each new one; the original of a recipe's languages takes 1.5 to 3


@dataclass(frozen=True)
class StageWeights:
    """Number of weights by what becomes of them."""

    # These train; those of the head are 0 where it is the same matrix as the input embeddings.
    new_rows: int
    old_rows: int
    new_head: int
    old_head: int
    lora: int
    body: int
    # These stay as they are, rows of both matrices together.
    frozen_rows: int
    frozen_body: int

    @property
    def trained(self) -> int:
        """All that train."""
        return self.new_rows + self.old_rows + self.new_head + self.old_head + self.lora + self.body

    @property
    def frozen(self) -> int:
        """All that do not."""
        return self.frozen_rows + self.frozen_body


def stage_weights(shape: Shape, settings: PretrainSettings, first_new: int) -> StageWeights:
    """Count what trains; `shape` has the new vocabulary, whose first `first_new` rows are those of old tokens."""
    old, new = first_new * shape.width, (shape.rows - first_new) * shape.width
    trained_old = 0 if settings.keeps_old_rows else old
    trained_body = shape.body if settings.trains == "full" else 0
    heads = shape.matrices - 1  # that are not the input embeddings
    return StageWeights(
        new_rows=new,
        old_rows=trained_old,
        new_head=heads * new,
        old_head=heads * trained_old,
        lora=lora_weights(shape, settings.lora) if settings.trains_lora else 0,
        body=trained_body,
        frozen_rows=(old - trained_old) * shape.matrices,
        frozen_body=shape.body - trained_body,
    )


def lora_weights(shape: Shape, lora: Lora) -> int:
    """Weights of low-rank changes: rank * (inputs + outputs) for each linear layer that has one."""
    share = lora_layers(shape, lora) / shape.layers
    weights = 0
    for layer in shape.linear:
        if lora.targets == "all-linear" or layer.name in lora.targets:
            weights += lora.rank * (layer.inputs + layer.outputs) * round(layer.number * share)
    return weights


def lora_layers(shape: Shape, lora: Lora) -> int:
    """How many layers have low-rank changes."""
    if lora.layers is None:
        return shape.layers
    return len({layer % shape.layers for layer in lora.layers})


def _trained_head(shape: Shape, weights: StageWeights) -> int:
    """Weights of the head that train, also where it is the same matrix as the input embeddings."""
    if shape.tied:
        return weights.new_rows + weights.old_rows
    return weights.new_head + weights.old_head


@dataclass(frozen=True)
class Flops:
    """Operations for one token of training, each multiplication and each addition one."""

    forward: int  # of the body
    attention: int  # scores and values, forward and backward
    backward: int  # gradients that pass through the body
    gradients: int  # of the weights of the body that train
    head: int
    recomputed: int  # gradient checkpointing
    teacher: int  # what it reads, and for likelihoods the heads

    @property
    def total(self) -> int:
        """All together."""
        return sum(astuple(self))


def flops_per_token(shape: Shape, settings: PretrainSettings, weights: StageWeights) -> Flops:
    """Operations for one token of a stage; `shape` has the new vocabulary, and a teacher counts as such a model."""
    body = shape.body + weights.lora
    # Two products of block x width for each token, halved: a token attends only to those before it.
    attention = 2 * shape.layers * settings.block * shape.attention_width
    head = 2 * shape.rows * shape.width
    teacher = 0.0
    if settings.teacher:
        teacher = OLD_TOKENS * (2 * shape.body + attention)
        if settings.teacher_loss == "likelihoods":  # its own head, and that of the student once more
            teacher += OLD_TOKENS * head + head
    return Flops(
        forward=2 * body,
        attention=3 * attention,
        backward=2 * body,
        gradients=2 * (weights.body + weights.lora),
        head=2 * head + 2 * _trained_head(shape, weights),
        recomputed=(2 * body + attention) if settings.gradient_checkpointing else 0,
        teacher=round(teacher),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, or of one process on a CPU, by what they hold."""

    frozen: float
    masters: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    overhead: float

    @property
    def total(self) -> float:
        """All together."""
        return sum(astuple(self))


def usual_sharding(processes: int) -> Sharding:
    """How processes share a model unless it does not fit."""
    return "one process" if processes == 1 else "DDP"


def micro_batch(settings: PretrainSettings, processes: int) -> int:
    """Blocks that one process holds at once."""
    share = -(-settings.batch // processes)
    return min(settings.micro_batch or share, share)


def memory(
    shape: Shape,
    settings: PretrainSettings,
    weights: StageWeights,
    processes: int = 1,
    sharding: Sharding = "one process",
    cpu: bool = False,
) -> Memory:
    """Estimate the memory of one process of a stage; on a CPU everything is float32."""
    single = cpu or settings.body_dtype == "float32"
    compute = 4 if single else 2  # bytes of an activation
    packed = min(shape.linear_weights, weights.frozen_body)
    frozen = packed * PACKED.get(settings.body_dtype, compute) + (weights.frozen - packed) * compute
    trained = float(weights.trained)
    masters, gradients, optimizer = trained * MASTER, trained * GRADIENT, trained * ADAM
    head = _trained_head(shape, weights)
    loss = float(LOGITS + 4 * head)  # the gradient of this step's head, beside the sum of those before
    if not single:
        loss += LOGITS / 2 + 2 * compute * head  # the head and its gradient in 16 bits
    if weights.body and not single and sharding != "FSDP2":
        loss += compute * weights.body  # 16-bit copies of trained matrices, which autocast keeps until the step's end
    if sharding == "DDP":
        gradients *= 2  # the buckets that travel between GPUs
    if sharding == "FSDP2":
        frozen, masters = frozen / processes, masters / processes
        gradients, optimizer = gradients / processes, optimizer / processes
        loss += compute * (GATHERED_LAYERS * shape.body / shape.layers + shape.embeddings)
    if settings.teacher:  # every process has it whole
        frozen += shape.weights * compute
    activations = _activation_bytes(shape, settings, micro_batch(settings, processes), compute)
    rest = frozen + masters + gradients + optimizer + activations + loss
    return Memory(frozen, masters, gradients, optimizer, activations, loss, overhead(rest, cpu))


def overhead(rest: float, cpu: bool) -> float:
    """Bytes that a process takes beside the `rest`: of Python and torch, and on a GPU lost in fragments."""
    return CPU_OVERHEAD if cpu else CONTEXT + FRAGMENTS * rest


def activation_bytes_per_token(shape: Shape, settings: PretrainSettings, compute: int) -> int:
    """Bytes that one layer, with low-rank changes if there are any, keeps of one token for the backward pass.

    A test compares them with what autograd keeps of a LLaMA.
    """
    d, a, k, i = shape.width, shape.attention_width, shape.kv_width, shape.intermediate
    # Two norms keep their input in float32; attention keeps queries, keys, values and result, the MLP gate, its
    # activation and up. Linear layers keep their input only if they train or have a low-rank change.
    kept = 8 * d + compute * (2 * a + 2 * k + 3 * i)
    if settings.trains_lora:
        inputs = 5 * d + a + i if compute == 2 else 2 * d + i  # cast for each layer; in float32, one serves several
        kept += compute * (inputs + 7 * settings.lora.rank)
    if settings.trains == "full":
        kept += 8 * d + compute * (5 * d + i) if compute == 2 else compute * (4 * d + i)
    return kept


def _activation_bytes(shape: Shape, settings: PretrainSettings, blocks: int, compute: int) -> float:
    layer = activation_bytes_per_token(shape, settings, compute)
    # Beside what is kept: one layer in the backward pass, its gradients, and the last states with theirs.
    if settings.gradient_checkpointing:
        kept, at_work = shape.layers * shape.width * compute, 2 * layer
    else:
        kept, at_work = shape.layers * layer, layer
        if settings.trains_lora:
            plain = activation_bytes_per_token(shape, settings.model_copy(update={"trains": "embeddings"}), compute)
            kept -= (shape.layers - lora_layers(shape, settings.lora)) * (layer - plain)
    return blocks * settings.block * (kept + at_work + 16 * shape.width)


@dataclass(frozen=True)
class Fit:
    """Whether a stage fits a device, and what would make it fit; sizes in GiB."""

    fits: bool
    needs: float  # as the recipe stands
    change: Change  # that makes it fit; empty if it fits or nothing does
    needs_then: float | None  # with that change


def fit(shape: Shape, settings: PretrainSettings, first_new: int, limit: float, processes: int) -> Fit:
    """Compare a stage with the GiB it may take on a GPU; if it does not fit, find the mildest change that makes it.

    Tried in this order: a smaller micro_batch, which costs next to nothing; gradient checkpointing, which costs one
    more forward pass; the weights sharded over the GPUs there are; a body in 4 bits; more GPUs. The trainer takes all
    that is named: processes share a batch equally, and a micro_batch divides their shares.
    """

    def needs(changed: PretrainSettings, number: int, way: Sharding) -> float:
        return memory(shape, changed, stage_weights(shape, changed, first_new), number, way).total / GIB

    sharding = usual_sharding(processes)
    now = needs(settings, processes, sharding)
    if now <= limit:
        return Fit(True, now, {}, None)
    for number, way, body in _ways(processes):
        if settings.batch % number:
            continue
        moved: Change = {"sharding": way, "gpus": number} if way != sharding else {}
        for change in _changes(settings, settings.batch // number, body):
            then = needs(settings.model_copy(update=change), number, way)
            if then <= limit:
                return Fit(False, now, moved | change, then)
    return Fit(False, now, {}, None)


def _ways(processes: int) -> Iterator[tuple[int, Sharding, Change]]:
    """GPUs, sharding, and what becomes of the body: 4-bit weights are not sharded."""
    yield processes, usual_sharding(processes), {}
    if processes > 1:
        yield processes, "FSDP2", {}
    yield processes, usual_sharding(processes), {"body_dtype": "4bit"}
    for number in (2, 4, 8):
        if number > processes:
            yield number, "FSDP2", {}


def _changes(settings: PretrainSettings, share: int, body: Change) -> Iterator[Change]:
    """Changes of a stage that save memory, mildest first; a process has `share` blocks of a step."""
    if body and (settings.trains == "full" or settings.body_dtype == "4bit"):
        return
    checkpointings: list[Change] = [{}]
    if not settings.gradient_checkpointing:
        checkpointings.append({"gradient_checkpointing": True})
    now = settings.micro_batch or share
    for checkpointing in checkpointings:
        for size in range(min(now, share), 0, -1):
            if share % size == 0:
                smaller: Change = {"micro_batch": size} if size != now else {}
                yield body | checkpointing | smaller

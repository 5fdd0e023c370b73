"""Bytes that a step keeps from forward to backward, tensor by tensor.

Letters: T tokens, H hidden size, I inner size of the MLP, K width of the keys, V
vocabulary, r rank, s bytes of the dtype that computes. Compiled layers may keep less,
since the compiler recomputes cheap parts: for them these are upper bounds.
"""

from transformers import PretrainedConfig

from course_utils.models.memory.settings import Settings
from course_utils.models.memory.weights import head_size, projections


def hidden_bytes(settings: Settings) -> int:
    """Bytes of a number in the MLP's products, and in the residual stream behind them.

    Beside 4-bit layers the norms' weights are float32. So their outputs are, and
    bitsandbytes returns the MLP's product in the dtype of its input. The fast trainer's
    fused layers return what they compute in.
    """
    if settings.trainer == "stock" and settings.precision == "nf4":
        return 4
    return settings.compute_bytes


def layer_bytes(config: PretrainedConfig, settings: Settings) -> float:
    """What one decoder layer keeps for backward.

    norms       2 (4 H T + 4 T): input in float32, inverse root mean square
    attention   s (2 H + 2 K) T: queries, keys, values, output, and 4 a head for the
                log-sum-exp. Where a mask is given, keys and values are repeated to H,
                and each layer makes its own mask in s bytes: s T L
    MLP         3 I T: gate, its SiLU, up, in the dtype of `hidden_bytes`
    LoRA        each target's input in s, unless it is there already; A's output, s r T;
                stock under autocast: a copy of A and B in s
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, tokens = config.num_attention_heads, settings.tokens
    s, size = settings.compute_bytes, head_size(config)
    query, key = heads * size, config.num_key_value_heads * size
    stock = settings.trainer == "stock"

    masked = settings.padded if stock else settings.attention == "sdpa"
    keys = query if masked else key
    attention = tokens * (s * (2 * query + 2 * keys) + 4 * heads)
    if masked:
        # A row of the stock batch sees `length` tokens; a packed pair up to twice that.
        seen = settings.length if stock else min(2 * settings.length, tokens)
        attention += s * tokens * seen
    norms = 2 * (4 * hidden * tokens + 4 * tokens)
    mlp = 3 * inner * tokens * hidden_bytes(settings)
    return attention + norms + mlp + _lora_bytes(config, settings)


def _lora_bytes(config, settings):
    hidden, inner, s = (
        config.hidden_size,
        config.intermediate_size,
        settings.compute_bytes,
    )
    tokens, targets = settings.tokens, set(settings.targets)
    stock = settings.trainer == "stock"
    query = config.num_attention_heads * head_size(config)
    from_norms = [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}]
    # Each layer casts its input for itself, unless the input has the dtype already.
    shared = settings.compute == "float32" or (
        not stock and settings.precision != "nf4"
    )
    inputs = sum(
        min(len(group & targets), 1) if shared else len(group & targets)
        for group in from_norms
    )
    kept = inputs * hidden * s
    if "o_proj" in targets and not (
        stock and (settings.precision == "nf4" or settings.compute == "float32")
    ):
        kept += query * s  # otherwise it is attention's own output
    if "down_proj" in targets:
        kept += inner * s
    copies = 0
    if stock and s < 4:
        sizes = projections(config)
        copies = s * settings.lora_rank * sum(sum(sizes[name]) for name in targets)
    return tokens * (kept + s * settings.lora_rank * len(targets)) + copies


def stack_bytes(config: PretrainedConfig, settings: Settings) -> float:
    """What all decoder layers and the last norm keep until backward reaches them.

    With checkpointing it is each layer's input, in 16 bit for the first and in
    `hidden_bytes` for the others. Without, all of `layer_bytes`, but the first layer
    does not keep its norm's input, unless something before it is trained.
    """
    hidden, layers, tokens = (
        config.hidden_size,
        config.num_hidden_layers,
        settings.tokens,
    )
    norm = 4 * hidden * tokens + 4 * tokens
    if settings.checkpointing:
        first = hidden * tokens * min(settings.table_bytes, 4)
        return first + (layers - 1) * hidden * tokens * hidden_bytes(settings) + norm
    unused = 0 if settings.token_rows else norm
    return layers * layer_bytes(config, settings) - unused + norm


def backward_bytes(config: PretrainedConfig, settings: Settings) -> float:
    """What backward through one layer adds to what is kept.

    The fullest moment is the MLP's product: its incoming gradient and both outgoing
    ones, 3 I T, while the down projection's input, I T s, is gone. PEFT casts inputs in
    16 bit to float32 on their way into A, so that the gradient of down's input exists
    once in float32 and three times in 16 bit, 10 I T in all. The residual stream's
    gradient is alive all the time. With checkpointing the layer's own `layer_bytes`
    come back; its input, the checkpoint, counts already where the residual stream is in
    float32. NF4 weights are unpacked one matrix at a time; the fast trainer has let go
    of down's when the MLP's product is at its fullest.
    """
    hidden, inner, tokens = (
        config.hidden_size,
        config.intermediate_size,
        settings.tokens,
    )
    wide = hidden_bytes(settings)
    gradients = 3 * wide
    if settings.trainer == "stock" and wide == 2 and "down_proj" in settings.targets:
        gradients = 4 + 3 * 2
    unpacked = hidden * inner * settings.compute_bytes * (settings.precision == "nf4")
    adds = inner * tokens * (gradients - settings.compute_bytes)
    if settings.trainer == "stock":
        adds += unpacked
    else:
        adds = max(adds, inner * tokens * wide + unpacked)
    adds += hidden * tokens * hidden_bytes(settings)
    if settings.checkpointing:
        adds += layer_bytes(config, settings)
        adds -= hidden * tokens * 4 if hidden_bytes(settings) == 4 else 0
    return adds


def head_bytes(config: PretrainedConfig, settings: Settings) -> tuple[float, float]:
    """(kept until backward, added at the fullest moment) by head and loss.

    Stock: the logits of all 2 B L positions are there in float32, one copy. TRL with
    its Triton kernel keeps them, and for the NLL the log-softmax of the chosen half,
    another 1/2; in backward the gradient takes one more copy. ORPOTrainer keeps the
    log-softmax of all, while the logits and their gradient take two more. PEFT trains
    token rows on a copy of the head, which is kept; so is the copy in s of a head in
    float32.

    Fast: a tile of logits in s, in float32, and once more in float32 while exponentials
    are summed; kept is the gradient of each target's log-prob, s H a target.
    """
    tokens, vocabulary, hidden = settings.tokens, config.vocab_size, config.hidden_size
    s, rows = settings.compute_bytes, bool(settings.token_rows)
    cast = settings.table_bytes != s
    if settings.trainer == "stock":
        logits = 4 * tokens * vocabulary
        copy = rows * tokens * hidden * s
        copy += (rows or cast) * vocabulary * hidden * s
        kept, more = (1.5, 1) if settings.log_prob_kernel else (1, 2)
        return round(kept * logits) + copy, more * logits
    tile = min(settings.head_tile or tokens, tokens)
    slopes = tokens * hidden * s * (2 if rows else 1)
    head = cast * vocabulary * hidden * s
    return slopes, tile * vocabulary * (s + 4 + 4) + head

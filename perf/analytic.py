"""The paper's model of the time to first token: floating-point operations over the machine's rate.

    prefill of s slots        (24·d² + 4·d·s) · layers · batch · s      operations, of a decoder of width d

Speed-ups are ratios of such times, so the rate and the number of layers cancel. The model leaves out the encoder, the
question's own slots, the reading of weights, and everything else outside the decoder (REFRAG, arXiv:2509.01092,
appendix on latency). We differ in one point: we count the slots that were really computed, the question's included.
"""


def prefill_flops(num_slots: int, width: int, num_layers: int = 1, batch: int = 1) -> float:
    return (24.0 * width * width + 4.0 * width * num_slots) * num_layers * batch * num_slots


def predicted_speedup(plain_slots: int, slots: int, width: int) -> float:
    """Return how many times as long the plain prompt takes, in a decoder of this width."""
    return prefill_flops(plain_slots, width) / prefill_flops(slots, width)

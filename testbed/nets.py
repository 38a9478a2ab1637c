"""The network that a device trains under each method.

Knows plans and a network's parts. Knows no weights but the first ones.
"""

from emo.models import split_network
from emo.models.split_network import SplitNetwork
from testbed.plan import Plan


def build(plan: Plan) -> SplitNetwork:
    """As it is before the first round: the same trunk for all methods of one seed; in fl-large, sfl-cloud and sfl-edge
    the overlay stands in the head's place (the paper's "FL-Large"), split or not. Raises ModelError."""
    net = split_network.network(plan.model, plan.seed)
    if plan.method in {"fl-small", "emo"}:
        return net
    return SplitNetwork(net.trunk, split_network.overlay(plan.model, plan.seed))

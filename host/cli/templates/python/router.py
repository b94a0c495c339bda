"""Uses the modules that the user's message names: `german-numbers` for "in German, please"."""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.planner import (
    Descriptor, Mixture, ParameterError, Pick, RouteError_Abstain, RouteError_InvalidParameter,
    RoutePlan_Fixed,
)
from wit_world.imports import gate, host


def unknown(parameters):
    return next((p.name for p in parameters if p.name != "weight"), None)


class Planner(exports.Planner):
    def init(self, parameters):
        if name := unknown(parameters):
            raise Err(f"parameter `{name}`: unknown; known are: weight")
        return Descriptor(name="@NAME@", version="0.1.0", causal=False)

    def library_changed(self, added, removed):
        pass

    def plan(self, request):
        if name := unknown(request.parameters):
            raise Err(RouteError_InvalidParameter(ParameterError(name, "unknown; known are: weight")))
        weight = next((p.value.value for p in request.parameters), 1.0)
        text = (request.text or "").lower()
        named = [
            module for module in request.candidates
            if any(word in text for word in host.module(module).name.split("-"))
        ]
        if not named:
            raise Err(RouteError_Abstain())
        picks = [Pick(module, weight / len(named)) for module in named]
        return RoutePlan_Fixed(Mixture(picks, gate.Combine.OUTPUT_SUM))

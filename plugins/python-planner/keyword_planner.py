"""A planner in Python: the modules whose names or tags the text holds, all with the same weight."""

import re

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.planner import (
    Descriptor,
    Mixture,
    ParameterError,
    Pick,
    RouteError_Abstain,
    RouteError_InvalidParameter,
    RoutePlan_Fixed,
    Value_Number,
)
from wit_world.imports import gate, host


def words(text):
    """Words in lower case, without a plural's s."""
    return {word.removesuffix("s") for word in re.findall(r"\w+", text.lower().replace("_", " "))}


def max_modules(parameters):
    """The one parameter there is; all others are refused."""
    limit = 4
    for parameter in parameters:
        value = parameter.value
        if parameter.name != "max_modules":
            message = "unknown; known are: max_modules"
            raise Err(RouteError_InvalidParameter(ParameterError(parameter.name, message)))
        if not isinstance(value, Value_Number) or value.value < 1 or value.value % 1:
            message = "expected a whole number from 1 on"
            raise Err(RouteError_InvalidParameter(ParameterError(parameter.name, message)))
        limit = int(value.value)
    return limit


class Planner(exports.Planner):
    def __init__(self):
        self.words = None

    def init(self, parameters):
        try:
            max_modules(parameters)
        except Err as error:
            problem = error.value.value
            raise Err(f"parameter `{problem.name}`: {problem.message}") from None
        return Descriptor("python-planner", "0.1.0", True)

    def library_changed(self, added, removed):
        self.words = None

    def plan(self, request):
        limit = max_modules(request.parameters)
        if request.text is None:
            raise Err(RouteError_Abstain())
        # A cache: the host may put another instance in this one's place at any time.
        if self.words is None:
            self.words = [words(" ".join([m.name, *m.tags])) for m in host.modules()]
        text = words(request.text)
        hits = [(len(text & self.words[module]), module) for module in request.candidates]
        hits = sorted((-count, module) for count, module in hits if count)
        best = sorted(module for _, module in hits[:limit])
        if not best:
            raise Err(RouteError_Abstain())
        picks = [Pick(module, 1 / len(best)) for module in best]
        return RoutePlan_Fixed(Mixture(picks, gate.Combine.OUTPUT_SUM))

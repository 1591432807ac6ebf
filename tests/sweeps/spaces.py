"""Search spaces that Hypothesis makes."""

from hypothesis import strategies as st

from engine.sweeps.domains import choice, integer, log, log_integer, uniform, when

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: float(f"{value:.6g}"))
positive = st.floats(1e-8, 1e6).map(lambda value: float(f"{value:.6g}"))
texts = st.text(max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | numbers | texts
options = scalars | st.lists(scalars, max_size=3).map(tuple)


def _pair(values):
    return st.tuples(values, values).filter(lambda pair: pair[0] < pair[1])


def _key(option):
    return repr(option) if isinstance(option, tuple) else option


@st.composite
def stepped(draw):
    """Draws a range with a step, in decimal numbers."""
    low, step, count = draw(st.integers(-1000, 1000)), draw(st.integers(1, 99)), draw(st.integers(1, 12))
    if draw(st.booleans()):
        return integer(low, low + step * count + draw(st.integers(0, step - 1)), step)
    return uniform(low / 100, (low + step * count) / 100, step / 100)


points = st.none() | st.integers(2, 6)
choices = st.lists(options, min_size=1, max_size=4, unique_by=_key).map(lambda found: choice(*found))
ranges = st.one_of(
    st.builds(lambda pair, points: uniform(*pair, points=points), _pair(numbers), points),
    st.builds(lambda pair, points: log(*pair, points=points), _pair(positive), points),
    st.builds(lambda pair, points: integer(*pair, points=points), _pair(st.integers(-(2**53), 2**53)), points),
    st.builds(lambda pair, points: log_integer(*pair, points=points), _pair(st.integers(1, 2**53)), points),
    stepped(),
)
finite = st.one_of(
    stepped(),
    choices,
    st.builds(lambda pair, points: log(*pair, points=points), _pair(positive), st.integers(2, 4)),
    st.builds(lambda low: integer(low, low + 3), st.integers(-9, 9)),
)
NAMES = ("task.a", "task.b", "task.c", "optimizer.d")


@st.composite
def spaces(draw, domains):
    """Draws setting -> domain; later settings may depend on earlier choices."""
    found = {}
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)):
        domain = draw(domains)
        conditions = [other for other, earlier in found.items() if hasattr(earlier, "options")]
        if conditions and draw(st.booleans()):
            other = draw(st.sampled_from(conditions))
            values = draw(st.lists(st.sampled_from(found[other].options), min_size=1, max_size=2))
            domain = when(other, values, domain)
        found[name] = domain
    return found

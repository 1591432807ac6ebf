"""Simulates traffic with SUMO: random road networks, vehicles, bicycles, pedestrians and traffic lights.

Needs the extra `sim`: the package eclipse-sumo, which contains the programs. The same seed gives the same traffic with
the same version of SUMO.
"""

import dataclasses
import importlib
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from engine import DataError

RATE = 2  # Hz, of recorded states
WARM_UP, DURATION = 60, 300  # seconds: recording starts when there is traffic, and ends
STEP = 0.25  # seconds of a step of the simulation
PIECE, POINTS = 30.0, 5  # metres: longest piece of a lane, and points of a piece
TYPES = ("car", "truck", "bus", "bicycle", "pedestrian")
KINDS = ("road", "junction", "pavement", "crossing")
LIGHTS = ("red", "yellow", "green")

# Share of the trips, type, and attributes of SUMO's vehicles. sigma is the imperfection of a driver, speedFactor the
# wanted speed as a share of the limit: mean, standard deviation, lowest and highest.
VEHICLES = (
    (0.50, "car", 'vClass="passenger" length="4.6" width="1.85" sigma="0.5" speedFactor="normc(0.95,0.12,0.6,1.3)"'),
    (0.18, "car", 'vClass="passenger" length="4.2" width="1.75" sigma="0.3" speedFactor="normc(1.15,0.1,0.9,1.4)"'),
    (0.10, "truck", 'vClass="truck" length="9" width="2.5" sigma="0.5" speedFactor="normc(0.9,0.08,0.6,1.1)"'),
    (0.08, "bus", 'vClass="bus" length="12" width="2.5" sigma="0.5" speedFactor="normc(0.9,0.08,0.6,1.1)"'),
    (0.14, "bicycle", 'vClass="bicycle" length="1.8" width="0.65" sigma="0.5" speedFactor="normc(1,0.15,0.6,1.4)"'),
)
PEDESTRIAN = 'vClass="pedestrian" length="0.4" width="0.6" speedFactor="normc(1,0.15,0.5,1.5)"'
SIZES = ((4.6, 1.85), (4.2, 1.75), (9.0, 2.5), (12.0, 2.5), (1.8, 0.65), (0.4, 0.6))  # length, width as above


@dataclasses.dataclass
class Recording:
    """The traffic on a network, at RATE, in metres. `steps` is (DURATION - WARM_UP) * RATE.

    Lanes are cut into pieces of at most PIECE metres, each with POINTS points in the direction of traffic.
    """

    type: np.ndarray  # int8 [tracks], index into TYPES
    size: np.ndarray  # float32 [tracks, 2]: length, width
    state: np.ndarray  # float32 [tracks, steps, 4]: x, y of the centre, heading in radians, speed; NaN if absent
    points: np.ndarray  # float32 [pieces, POINTS, 2]
    kind: np.ndarray  # int8 [pieces], index into KINDS
    width: np.ndarray  # float32 [pieces]
    limit: np.ndarray  # float32 [pieces], metres per second
    lane: np.ndarray  # int32 [pieces], number of the lane
    next: np.ndarray  # int32 [pieces, 4], pieces that follow, -1 for none
    signal_piece: np.ndarray  # int32 [signals], the piece that a light lets traffic enter
    signal_state: np.ndarray  # int8 [signals, steps], index into LIGHTS


def simulate(seed: tuple[int, ...]) -> Recording:
    """Makes a network and simulates DURATION seconds of traffic on it.

    Args:
        seed: numbers that the network and the traffic depend on.

    Raises:
        DataError: SUMO is not installed or fails.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        _run(path, "netgenerate", *_network_options(rng), "--output-file=net.xml")
        network = ElementTree.parse(path / "net.xml").getroot()
        path.joinpath("trips.xml").write_text(_trips(rng, network), encoding="utf-8")
        sources = [light.attrib["id"] for light in network.iterfind("tlLogic")]
        events = "".join(f'<timedEvent type="SaveTLSSwitchStates" source="{s}" dest="lights.xml"/>' for s in sources)
        path.joinpath("events.xml").write_text(f"<additional>{events}</additional>", encoding="utf-8")
        _run(
            path, "sumo", "--net-file=net.xml", "--route-files=trips.xml", "--additional-files=events.xml",
            "--fcd-output=tracks.xml", "--fcd-output.attributes=x,y,angle,type,speed",
            f"--device.fcd.begin={WARM_UP}", f"--device.fcd.period={1 / RATE}", f"--step-length={STEP}",
            f"--end={DURATION}", "--lanechange.duration=2",
            f"--seed={rng.integers(2**31)}", "--precision=3", "--ignore-route-errors", "--no-step-log",
            "--xml-validation=never",
        )  # fmt: skip
        pieces, first = _pieces(network)
        return Recording(**_tracks(path / "tracks.xml"), **pieces, **_lights(path / "lights.xml", network, first))


def sumo_folder() -> Path:
    """Returns the folder of SUMO's package. Raises DataError if it is not installed."""
    try:
        return Path(importlib.import_module("sumo").__file__ or "").parent
    except ModuleNotFoundError as error:
        raise DataError(
            "Simulated traffic needs eclipse-sumo, which is not installed. In the clone: pip install -e '.[sim]'."
        ) from error


def _run(folder: Path, program: str, *options: str) -> None:
    command = [str(sumo_folder() / "bin" / program), *options, "--no-warnings"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DataError(f"{command[0]}: {error.strerror}. Install eclipse-sumo again.") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        raise DataError(f"{program} ended with exit code {done.returncode}: {' '.join(lines) or done.stderr[-500:]}")


def _network_options(rng: np.random.Generator) -> list[str]:
    """Returns the options of netgenerate for a random network: a distorted grid, a random one, or rings and arms."""
    speed, cycle = rng.choice([8.33, 11.11, 13.89, 16.67]), rng.choice([40, 60, 80])
    options = [
        f"--seed={rng.integers(2**31)}", f"--default.speed={speed}", "--random-lanenumber", "--no-turnarounds",
        f"--default.lanenumber={rng.integers(1, 4)}", f"--default.lanewidth={rng.choice([3.0, 3.2, 3.5])}",
        "--sidewalks.guess", "--sidewalks.guess.max-speed=20", "--crossings.guess", "--tls.guess",
        f"--tls.guess.threshold={2.5 * speed}", f"--tls.cycle.time={cycle}", "--junctions.internal-link-detail=8",
        f"--tls.default-type={rng.choice(['static', 'actuated'])}",
    ]  # fmt: skip
    if rng.random() < 0.5:
        options += ["--turn-lanes=1", f"--turn-lanes.length={rng.integers(25, 45)}"]
    kind = rng.choice(["grid", "rand", "spider"], p=[0.4, 0.4, 0.2])
    if kind == "grid":
        shift = f"norm(0,{rng.uniform(2, 18):.1f})"
        options += [
            "--grid", f"--grid.number={rng.integers(3, 5)}", f"--grid.x-length={rng.integers(90, 160)}",
            f"--grid.y-length={rng.integers(90, 160)}", "--grid.attach-length=80", f"--perturb-x={shift}",
            f"--perturb-y={shift}",
        ]  # fmt: skip
    elif kind == "rand":
        options += ["--rand", f"--rand.iterations={rng.integers(20, 40)}", "--rand.min-distance=80"]
        options += [f"--rand.max-distance={rng.integers(130, 200)}", "--rand.min-angle=40"]
    else:
        options += ["--spider", f"--spider.arm-number={rng.integers(4, 8)}", "--spider.circle-number=2"]
        options += [f"--spider.space-radius={rng.integers(80, 120)}", "--spider.omit-center"]
    return options


def _trips(rng: np.random.Generator, network: ElementTree.Element) -> str:
    """Returns the routes of SUMO: vehicle types, and random trips sorted by their departure."""
    following = {}
    for connection in network.iterfind("connection"):
        start, end = connection.attrib["from"], connection.attrib["to"]
        if not (start + end).count(":"):  # between roads
            following.setdefault(start, []).append(end)
    roads = [road for road in following if reachable(road, following)]
    lanes = sum(float(x.attrib["length"]) for x in network.iterfind("edge/lane") if x.attrib["id"][0] != ":")
    count = int(rng.uniform(0.015, 0.035) * min(lanes, 12000))  # more traffic would only stand
    departures, trips = np.sort(rng.uniform(0, DURATION - 20, count + count // 3)), []
    for number, depart in enumerate(departures):
        start = roads[rng.integers(len(roads))]
        end = rng.choice(reachable(start, following))
        way = f'depart="{depart:.2f}" id="{number}"'
        if rng.random() < 0.25:
            trips.append(f'<person {way} type="5" departPos="random"><personTrip from="{start}" to="{end}"/></person>')
        else:
            kind = rng.choice(len(VEHICLES), p=[share for share, *_ in VEHICLES])
            options = 'departLane="best" departPos="random_free" departSpeed="max"'
            trips.append(f'<trip {way} type="{kind}" from="{start}" to="{end}" {options}/>')
    attributes = [*(text for *_, text in VEHICLES), PEDESTRIAN]
    types = [f'<vType id="{number}" {text}/>' for number, text in enumerate(attributes)]
    return "\n".join(["<routes>", *types, *trips, "</routes>"])


def reachable(start: str, following: dict[str, list[str]]) -> list[str]:
    """Returns the roads to which a trip leads from a road, sorted."""
    found, last = set(), {start}
    while last:
        last = {road for one in last for road in following.get(one, [])} - found
        found |= last
    return sorted(found - {start})


def _tracks(path: Path) -> dict[str, np.ndarray]:
    """Returns the fields of the tracks of a Recording, in the order in which they appear."""
    steps = (DURATION - WARM_UP) * RATE
    numbers, kinds, rows = {}, [], []
    for _, element in ElementTree.iterparse(path):
        if element.tag != "timestep":
            continue
        step = round((float(element.attrib["time"]) - WARM_UP) * RATE)
        for one in element if 0 <= step < steps else ():
            found = one.attrib
            number = numbers.setdefault(found["id"], len(numbers))
            if number == len(kinds):
                kinds.append(int(found["type"].partition("@")[0]))
            rows.append((number, step, *(float(found[name]) for name in ("x", "y", "angle", "speed"))))
        element.clear()
    table, kind = np.array(rows).reshape(-1, 6), np.array(kinds, int)
    size = np.array(SIZES, np.float32)[kind]
    number, step = table[:, :2].T.astype(int)
    heading = np.pi / 2 - np.deg2rad(table[:, 4])  # SUMO's angle is clockwise from north
    front = np.stack([np.cos(heading), np.sin(heading)], -1) * size[number, :1] / 2  # SUMO's position is the bumper
    state = np.full((len(kind), steps, 4), np.nan, np.float32)
    state[number, step] = np.column_stack([table[:, 2:4] - front, (heading + np.pi) % (2 * np.pi) - np.pi, table[:, 5]])
    names = [*(name for _, name, _ in VEHICLES), "pedestrian"]
    return {"type": np.array([TYPES.index(names[k]) for k in kind], np.int8), "size": size, "state": state}


def _pieces(network: ElementTree.Element) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Returns the fields of the map of a Recording, and the first piece of each lane."""
    first, last, rows, following = {}, {}, [], {}
    for edge in network.iterfind("edge"):
        function = edge.get("function", "")
        if function == "walkingarea":  # an area, not a line
            continue
        for lane in edge.iterfind("lane"):
            pavement = lane.get("allow") == "pedestrian"
            kind = {"internal": 1, "crossing": 3}.get(function, 2 if pavement else 0)
            line = np.array([point.split(",")[:2] for point in lane.attrib["shape"].split()], float)
            name, pieces = lane.attrib["id"], cut(line)
            first[name], last[name] = len(rows), len(rows) + len(pieces) - 1
            width, limit = float(lane.get("width", 3.2)), float(lane.attrib["speed"])
            rows += [(piece, kind, width, limit, len(first) - 1) for piece in pieces]
    for connection in network.iterfind("connection"):
        found = connection.attrib
        begin = f"{found['from']}_{found['fromLane']}"
        end = found.get("via") or f"{found['to']}_{found['toLane']}"
        if begin in first and end in first:
            following.setdefault(last[begin], []).append(first[end])
    following |= {n: [n + 1] for name in first for n in range(first[name], last[name])}
    after = np.full((len(rows), 4), -1, np.int32)
    for number, pieces in following.items():
        after[number, : len(pieces)] = sorted(set(pieces))[:4]
    points, kind, width, limit, lane = (list(column) for column in zip(*rows, strict=True))
    return {
        "points": np.array(points, np.float32),
        "kind": np.array(kind, np.int8),
        "width": np.array(width, np.float32),
        "limit": np.array(limit, np.float32),
        "lane": np.array(lane, np.int32),
        "next": after,
    }, first


def cut(line: np.ndarray) -> list[np.ndarray]:
    """Returns the pieces `[POINTS, 2]` of a polyline `[points, 2]`, of equal length and at most PIECE long."""
    along = np.concatenate([[0], np.hypot(*np.diff(line, axis=0).T).cumsum()])
    count = max(1, int(np.ceil(along[-1] / PIECE)))
    at = np.linspace(0, along[-1], count * (POINTS - 1) + 1)
    points = np.stack([np.interp(at, along, line[:, k]) for k in (0, 1)], -1)
    return [points[n * (POINTS - 1) : (n + 1) * (POINTS - 1) + 1] for n in range(count)]


def _lights(path: Path, network: ElementTree.Element, first: dict[str, int]) -> dict[str, np.ndarray]:
    """Returns the fields of the signals of a Recording: one for each lane or crossing that starts at a light."""
    links = {}  # piece -> light and number of the link
    for connection in network.iterfind("connection"):
        found = connection.attrib
        name = found.get("via") or f"{found['to']}_{found['toLane']}"
        if "tl" in found and name in first:
            links[first[name]] = found["tl"], int(found["linkIndex"])
    steps = (DURATION - WARM_UP) * RATE
    texts = {light: np.full(steps, "", object) for light, _ in links.values()}
    for _, element in ElementTree.iterparse(path) if texts else ():
        if element.tag == "tlsState" and (light := element.attrib["id"]) in texts:
            step = int(np.ceil((float(element.attrib["time"]) - WARM_UP) * RATE))
            texts[light][max(step, 0) :] = element.attrib["state"]
    letters = {"r": 0, "u": 0, "y": 1, "Y": 1, "g": 2, "G": 2}
    states = [[letters.get(text[index : index + 1], 0) for text in texts[light]] for light, index in links.values()]
    return {
        "signal_piece": np.array(list(links), np.int32),
        "signal_state": np.array(states, np.int8).reshape(-1, steps),
    }

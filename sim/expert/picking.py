"""Pick an object and put it where a predicate holds: grasps that have a feasible place, verified, retried."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sim.expert.controller import ALIGNED, CLOSE, OPEN, Tolerance
from sim.expert.geometry import slab_boxes
from sim.expert.goals import Predicate
from sim.expert.grasps import Grasp, Obstacles, Search, plan_grasps
from sim.expert.imagination import imagined
from sim.expert.kinematics import FAR_LEANS, HALF_TURN, LEANS, Reach, leaning
from sim.expert.motion import corridor_height, reach_in, travel, way_out
from sim.expert.placing import ABOVE, DROPS, INSERT_WAY, Place, Spot, by_rotation, find_insert, find_place, find_spots

if TYPE_CHECKING:
    from sim.expert.expert import Expert

TOUCHING, FREE_STEPS = 0.004, 10  # m from an open finger; control steps
CARRIED_SLABS = 6
NEAR = 0.25  # m: obstacles this close to the object or place matter to the hand
TRIED = 14  # grasps for which a place is looked for
GOOD, FAIR = 0.5, 0.3  # scores above which no half-open, no leaning grasps are looked at
SAME_HAND = 2.9  # trace of the rotation between hands that reach alike
FAR_APART = 0.03  # m around a spot out of reach in which no other is tried
MANY = 240  # spots looked at for the final release
FEW = 60  # spots looked at for each of them
PLACE_WEIGHT = 0.3  # of a place's cost against a grasp's score
RETRIES = 5
BACK = 0.06  # m back from a grasp or release, where the straight way in starts
BEFORE = 0.04  # m above a release, where the straight way down starts
LIFT = 0.06  # m after which a lift is verified
AWAY, WAIT = 0.09, 20  # m of retreat after a release, steps then waited for the predicate
SLIP = 0.03  # m an object may move in the hand during that
SPARE, STRETCH_COST = 0.07, 40.0  # m short of straight, from where an arm no longer goes exactly; per metre
STRAIN = 12.0  # of a grasp's score, per metre of that
CENTRED, BEGUN = 0.004, 0.02  # m off the axis at which a hole may go over a peg; m down, from where it is on it
SINK, THREAD_STEPS = 0.015, 80  # m ahead that the aim is on the way down; control steps


class PickAndPlace:
    """One ["on" | "in", object, place] or ["lifted", object], as a generator of actions."""

    def __init__(self, expert: Expert, predicate: Predicate) -> None:
        self.expert = expert
        self.predicate = predicate
        self.scene, self.arm, self.goals = expert.scene, expert.arm, expert.goals
        self.body = self.goals.body(predicate[1])
        self.bodies = self.scene.subtree(self.body)
        self.failed: list[np.ndarray] = []
        self.covered = False
        self.out_of_reach: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self) -> Generator[np.ndarray, None, bool]:
        """Tries grasp after grasp until the predicate holds with the hand away; returns whether it does."""
        for _ in range(RETRIES):
            grasp = self.choose()
            if grasp is None:
                self.expert.note("no feasible grasp")
                return False
            if not (yield from self.pick(grasp)):
                self.failed.append(self.local(grasp.position))
                yield from self.arm.fingers(OPEN)
                continue
            if self.predicate[0] == "lifted":
                yield from self.raise_up()
            else:
                yield from self.place()
            if self.goals.holds(self.predicate):
                return True
        return False

    def has_spot(self) -> bool:
        """Is there room for the object where it should go?"""
        return bool(find_spots(self.scene, self.body, self.goals.region(self.predicate), self.bodies))

    # Planning

    def local(self, point: np.ndarray) -> np.ndarray:
        """A world point in the object's frame."""
        rotation, position = self.scene.pose(self.body)
        return (point - position) @ rotation

    def obstacles(self, center: np.ndarray) -> Obstacles:
        return Obstacles(self.scene.obstacles(self.bodies).near(center, NEAR).points, self.scene.supports())

    def choose(self) -> Grasp | None:
        """The best grasp that has not failed and, for a place, leads to a feasible release: pointing down if possible,
        else leaning."""
        cloud = self.scene.cloud(self.bodies)
        hand, _ = self.scene.hand()
        reach = Reach(self.scene)
        around = self.obstacles(cloud.points.mean(0))
        center = self.scene.center_of_mass(self.body)
        spots = self.spots() if self.predicate[0] != "lifted" else []
        found: list[tuple[float, Grasp]] = []
        for kind, lean, narrow in (("", False, False), ("narrow ", False, True), ("leaning ", True, True)):
            leans = np.r_[LEANS, FAR_LEANS] if self.covered else LEANS
            rotations = leaning(hand, reach, center, leans) if lean else None
            grasps = plan_grasps(cloud, center, self.scene.gripper, around, hand, Search(rotations, narrow=narrow))
            fresh = [g for g in grasps if all(np.linalg.norm(self.local(g.position) - f) > 0.015 for f in self.failed)]
            best = self.best(fresh, spots, reach)
            self.expert.note(f"{len(fresh)} of {len(grasps)} {kind}grasps, best {best and round(best[0], 3)}")
            found += [best] if best is not None else []
            if best is not None and best[1].score > (FAIR if narrow else GOOD):
                break
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def best(self, grasps: list[Grasp], spots: list[Spot], reach: Reach) -> tuple[float, Grasp] | None:
        """Of grasps, best first, the one with the best score after the cost of its release, and that score."""
        if self.predicate[0] == "lifted":
            return next(((g.score, g) for g in grasps if reach.reachable(g.rotation, g.position)), None)
        best: tuple[float, Grasp] | None = None
        grasps = [replace(g, score=g.score - STRAIN * strained(reach, g.rotation, g.position[None])[0]) for g in grasps]
        chosen = spread(sorted(grasps, key=lambda g: -g.score), TRIED) if spots else []
        if spots and spots[0].threads:  # the way round that the hand holds it decides how far the arm has to stretch
            chosen = [g for grasp in chosen for g in (grasp, replace(grasp, rotation=grasp.rotation @ HALF_TURN))]
        for grasp in chosen:
            most = np.inf if best is None else (grasp.score - best[0]) / PLACE_WEIGHT  # cost that is still better
            if spots[0].cost >= most or not reach.reachable(grasp.rotation, grasp.position):
                continue
            posture = reach.follow(reach.now, grasp.rotation, grasp.position) if spots[0].threads else reach.now
            if posture is None:
                continue
            better = spots[: bisect_left(spots, most, key=lambda spot: spot.cost)]
            place = self.release(better, grasp.rotation, grasp.position, FEW, posture)
            if place is not None and place.cost < most:
                best = (grasp.score - PLACE_WEIGHT * place.cost, grasp)
        return best

    def release(
        self,
        spots: list[Spot],
        rotation: np.ndarray,
        position: np.ndarray,
        few: int = MANY,
        posture: np.ndarray | None = None,
    ) -> Place | None:
        """The best release within reach over the spots for an object held by a hand at rotation, position. posture:
        the arm's then, if not now's."""
        region = self.goals.region(self.predicate)
        near, gripper = self.obstacles(region.center), self.scene.gripper
        in_hand = self.in_hand(rotation, position)
        carried = slab_boxes(self.local(self.scene.cloud(self.bodies).points), CARRIED_SLABS) if self.covered else None
        drops = DROPS if region.container else DROPS[:3]
        reach = Reach(self.scene)
        posture = reach.now if posture is None else posture
        left = self.near_enough(spots, in_hand, reach)
        for _ in range(TRIED):
            if carried is not None:
                place = find_insert(left[:few], in_hand, carried, gripper, near)
            else:
                place = find_place(left[:few], in_hand, gripper, near, drops)
            if place is None or self.comes_to(place, posture, reach):
                return place
            self.out_of_reach.append((place.spot.position, place.rotation))
            left = self.near_enough(left, in_hand, reach)
        return None

    def comes_to(self, place: Place, posture: np.ndarray, reach: Reach) -> bool:
        """Does the arm reach the release: for one that has to be met exactly, also on its way from the posture?"""
        if place.spot.threads and reach.follow(posture, place.rotation, place.position) is None:
            return False
        return reach.reachable(place.rotation, place.position)

    def near_enough(self, spots: list[Spot], in_hand: tuple[np.ndarray, np.ndarray], reach: Reach) -> list[Spot]:
        """The spots that the arm is long enough for, without those next to one that such a hand could not reach."""
        keep, stretch = np.zeros(len(spots), bool), np.zeros(len(spots))
        at = np.array([spot.position for spot in spots])
        for rotation, index in by_rotation(spots):
            hand = rotation @ in_hand[0].T
            good = reach.within(hand, at[index] - hand @ in_hand[1])
            far = [p for p, r in self.out_of_reach if np.trace(hand.T @ r) > SAME_HAND]
            if far:
                good &= np.linalg.norm(at[index][:, None] - np.array(far), axis=2).min(1) > FAR_APART
            keep[index] = good
            stretch[index] = strained(reach, hand, at[index] - hand @ in_hand[1])
        left = [spots[i] for i in np.flatnonzero(keep)]
        dear = [replace(s, cost=s.cost + STRETCH_COST * far) for s, far in zip(left, stretch[keep], strict=True)]
        return sorted(dear, key=lambda spot: spot.cost)

    def spots(self) -> list[Spot]:
        """Where the object may rest: reached from above, else, when there is no such spot, from the side."""
        region = self.goals.region(self.predicate)
        region = replace(region, center=region.center + self.expert.aside(self.predicate, region))
        spots = find_spots(self.scene, self.body, region, self.bodies)
        self.covered = not spots
        if self.covered:
            spots = find_spots(self.scene, self.body, region, self.bodies, covered=True)
        return self.verified(spots)

    def verified(self, spots: list[Spot]) -> list[Spot]:
        """Spots, from the first at which the simulator's own predicate holds on the predicted pose."""
        for i, spot in enumerate(spots[:20]):
            with imagined(self.scene, self.body, spot.rotation, spot.position - [0, 0, 0.002]):
                if self.goals.holds(self.predicate):
                    return spots[i:]
        self.expert.note(f"predicate not confirmed on {min(len(spots), 20)} of {len(spots)} spots")
        return spots

    def in_hand(self, rotation: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The object's pose in the frame of a hand at rotation, position."""
        object_rotation, object_position = self.scene.pose(self.body)
        return rotation.T @ object_rotation, (object_position - position) @ rotation

    # Motion

    def pick(self, grasp: Grasp) -> Generator[np.ndarray, None, bool]:
        """Approach, close, lift a little. Returns whether the object came along."""
        arm, scene = self.arm, self.scene
        arm.gripper = OPEN
        yield from reach_in(arm, grasp, BACK, 0.06)
        yield from arm.fingers(CLOSE)
        _, held = self.in_hand(*scene.hand())
        lift = scene.hand()[1] + np.array([0, 0, LIFT])
        yield from arm.move(grasp.rotation, lift, Tolerance(0.02, 0.3))
        shift = way_out(scene, self.load(), self.bodies)
        if shift is not None and shift.any():
            yield from arm.move(grasp.rotation, lift + shift, Tolerance(0.015, 0.3))
        _, now = self.in_hand(*scene.hand())
        caught = bool(np.linalg.norm(now - held) < SLIP and scene.fingers().max() > 0.001)
        self.expert.note(f"grasp {grasp.score:.2f} width {grasp.width:.3f}: {'caught' if caught else 'missed'}")
        return caught

    def load(self) -> np.ndarray:
        """Points (N, 3) of what the arm carries now: the object and the hand."""
        rotation, position = self.scene.hand()
        boxes = self.scene.gripper.boxes(float(self.scene.fingers().max()), 0.0, 0.0)
        grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 8)] * 3, indexing="ij"), -1).reshape(-1, 3)
        hand = np.concatenate([box[0] + grid * (box[1] - box[0]) for box in boxes])
        return np.concatenate([self.scene.cloud(self.bodies).points, hand @ rotation.T + position])

    def raise_up(self) -> Iterator[np.ndarray]:
        rotation, position = self.scene.hand()
        for _ in range(4):
            if self.goals.holds(self.predicate):
                return
            position = position + np.array([0, 0, 0.04])
            yield from self.arm.move(rotation, position)

    def place(self) -> Iterator[np.ndarray]:
        """Plans with the real pose in the hand, goes there, lets go, retreats."""
        arm, scene = self.arm, self.scene
        plan = self.plan_place()
        if plan is None:
            self.expert.note("no place with the object as held")
            return
        points = scene.cloud(self.bodies).points
        _, hand = scene.hand()
        below = float(hand[2] - points[:, 2].min())
        radius = min(float(np.linalg.norm(points[:, :2] - hand[:2], axis=1).max()), 0.12)
        before, tolerance = self.way_in(plan, below, radius)
        yield from travel(arm, plan.rotation, before, below, radius, self.bodies)
        yield from arm.move(plan.rotation, before, tolerance)
        if plan.spot.threads:
            yield from self.thread(plan)
        else:
            yield from arm.move(plan.rotation, plan.position, near=np.inf)
        yield from arm.fingers(OPEN)
        yield from self.come_free()
        yield from self.retreat(plan)

    def thread(self, plan: Place) -> Generator[np.ndarray, None, bool]:
        """Lowers the object over what goes through its hole: slowly, and the object, not the hand, is kept above its
        spot. Returns whether it came down."""
        target, start = plan.spot, self.scene.pose(self.body)[1]
        for _ in range(THREAD_STEPS):
            now_rotation, now = self.scene.hand()
            turn, shift = self.in_hand(now_rotation, now)
            item = self.scene.pose(self.body)[1]
            left = item[2] - target.position[2] - ABOVE - plan.drop
            if left < CENTRED:
                return True
            may = np.linalg.norm((target.position - item)[:2]) < CENTRED or start[2] - item[2] > BEGUN
            rotation = target.rotation @ turn.T
            if np.trace(rotation.T @ plan.rotation) < SAME_HAND:
                rotation = plan.rotation
            aim = np.array([*target.position[:2], item[2] - (min(left, SINK) if may else 0.0)])
            yield self.arm.toward(rotation, aim - rotation @ shift)
        self.expert.note("did not go down over it")
        return False

    def come_free(self) -> Iterator[np.ndarray]:
        """Moves open fingers to both sides of the object when one still touches: collision geoms may catch on a pad."""
        scene, (rotation, position) = self.scene, self.scene.hand()
        local = (scene.cloud(self.bodies).points - position) @ rotation
        low, high = scene.gripper.pad_z
        between = local[(np.abs(local[:, 1]) < scene.gripper.pad_y) & (local[:, 2] > low) & (local[:, 2] < high), 0]
        opening = scene.fingers().min()
        between = between[np.abs(between) < opening + TOUCHING]
        if len(between) and opening - np.abs(between).max() < TOUCHING:
            middle = (between.max() + between.min()) / 2
            yield from self.arm.move(rotation, position + middle * rotation[:, 0], Tolerance(0.004, 0.1), FREE_STEPS)

    def way_in(self, plan: Place, below: float, radius: float) -> tuple[np.ndarray, Tolerance]:
        """Where the straight last way starts, and how exactly: above what stands around, or outside a roof."""
        if self.covered:
            return plan.position + INSERT_WAY[-1] * plan.out, ALIGNED
        around = corridor_height(self.scene, plan.position, plan.position, radius, self.bodies)
        rise = around + 0.01 - (plan.position[2] - below)
        if rise > BEFORE:
            return plan.position + rise * plan.out, ALIGNED
        return plan.position + BEFORE * plan.out, Tolerance(0.02, 0.15)

    def plan_place(self) -> Place | None:
        """The best release for the object as it is held now."""
        return self.release(self.spots(), *self.scene.hand())

    def retreat(self, plan: Place) -> Iterator[np.ndarray]:
        rotation, position = self.scene.hand()
        if self.covered:
            yield from self.arm.move(rotation, position + INSERT_WAY[-1] * plan.out, Tolerance(0.03, 0.3))
        else:
            yield from self.arm.move(rotation, position - AWAY * plan.rotation[:, 2], Tolerance(0.03, 0.3))
        for _ in range(WAIT):
            if self.goals.holds(self.predicate):
                return
            yield from self.arm.hold(1)


def strained(reach: Reach, rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    """How much (K,) nearer to straight than SPARE the arm is with the hand at rotation (3, 3), positions (K, 3).

    A Panda's elbow is offset, so its arm is longest at -0.47 rad, not at the joint's limit of -0.07. Once past that,
    what should draw the hand back drives the elbow into the limit, and the hand stands still whatever it is told.
    """
    return np.maximum(reach.stretch(rotation, position) - (reach.length - SPARE), 0)


def spread(grasps: list[Grasp], count: int, distance: float = 0.012) -> list[Grasp]:
    """Up to `count` grasps, best first, that differ in position or orientation."""
    chosen: list[Grasp] = []
    for grasp in grasps:
        same = (
            np.linalg.norm(grasp.position - other.position) < distance
            and np.trace(grasp.rotation.T @ other.rotation) > 2.9
            for other in chosen
        )
        if not any(same):
            chosen.append(grasp)
        if len(chosen) == count:
            break
    return chosen

"""Recorded episodes: the frames of the episode that was played, and clear refusals."""

from io import BytesIO
from types import SimpleNamespace
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from PIL import Image

from perdqn import recording
from perdqn.acting.environment import MissingExtra, describe
from perdqn.acting.vector import Environments
from perdqn.config import EnvConfig, EvaluationConfig
from perdqn.recording import film, record


class Corridor(gymnasium.Env):
    """Walk right until the wall; each frame is of one colour, brighter step by step."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2, start=5)

    def __init__(self, render_mode=None, length=4):
        self.render_mode, self.length = render_mode, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return self._obs(), {}

    def step(self, action):
        assert action == 6
        self.position += 1
        return self._obs(), 0.5, self.position == self.length, False, {}

    def _obs(self):
        return np.array([self.position], np.float32)

    def render(self):
        return np.full((200, 300, 3), 40 * self.position % 256, np.uint8) if self.render_mode else None


class Speckled(Corridor):
    """A picture that no codec makes smaller; its first rows are ten times as bright as steps were taken."""

    def render(self):
        frame = np.random.default_rng(self.position).integers(256, size=(160, 320, 3), dtype=np.uint8)
        frame[:4] = 10 * self.position
        return frame


class Mute(Corridor):
    """Takes a render mode and draws nothing all the same."""

    def render(self):
        return None


class Modeless(Corridor):
    def __init__(self):
        super().__init__()


def agent(env, act=lambda obs: 6):
    return SimpleNamespace(
        config=SimpleNamespace(env=env, evaluation=EvaluationConfig(max_episode_steps=100)),
        spec=describe(env),
        act=act,
    )


def corridor(name="Corridor", **settings):
    return EnvConfig(f"{__name__}.{name}", **settings)


def brightness(path):
    with Image.open(path) as image:
        return [image.seek(i) or image.convert("RGB").getpixel((0, 0))[0] for i in range(image.n_frames)]


def test_gif_shows_the_episode_from_its_first_frame_to_its_last(tmp_path):
    result = record(agent(corridor()), tmp_path / "new" / "episode.gif", seed=0)
    assert (result.episode_return, result.length, result.path) == (2.0, 4, tmp_path / "new" / "episode.gif")
    assert brightness(result.path) == [0, 40, 80, 120, 160]
    with Image.open(result.path) as image:
        assert image.info["duration"] == 50


def test_recording_ends_after_max_steps(tmp_path):
    result = record(agent(corridor()), tmp_path / "episode.gif", seed=0, max_steps=2)
    assert (result.length, brightness(result.path)) == (2, [0, 40, 80])


def test_the_same_seed_records_the_same_episode(tmp_path):
    module = agent(EnvConfig("CartPole-v1"), act=lambda obs: int(obs[2] > 0))
    first, again, other = (
        record(module, tmp_path / f"{name}.gif", seed=seed)
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first.path.read_bytes() == again.path.read_bytes()
    assert first.path.read_bytes() != other.path.read_bytes()


@pytest.mark.parametrize("padding", ["zero", "repeat"])
def test_agent_is_shown_the_stacks_it_was_trained_on(tmp_path, padding):
    config = EnvConfig("CartPole-v1", frame_stack=3, stack_padding=padding)
    shown = []

    def act(obs):
        shown.append(obs.copy())
        return len(shown) % 2

    record(agent(config, act), tmp_path / "episode.gif", seed=9, max_steps=6)
    environments = Environments(config, describe(config), 1, lambda env, episode: 9)
    environments.reset()
    for step, obs in enumerate(shown, start=1):
        np.testing.assert_array_equal(obs, environments.obs["obs"][0])
        environments.step(np.array([step % 2]))
    environments.close()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # imageio's reader leaks a pipe
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_mp4_can_be_read_back(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    result = record(agent(corridor()), tmp_path / "episode.mp4", seed=0)
    with imageio.get_reader(result.path) as reader:
        assert reader.get_meta_data()["size"] == (300, 200)
        assert sum(1 for _ in reader) == 5


def test_small_frames_are_enlarged_by_a_whole_factor(tmp_path):
    pytest.importorskip("minatar")
    pytest.importorskip("seaborn")
    module = agent(EnvConfig("MinAtar/Breakout-v1"), act=lambda obs: 0)
    result = record(module, tmp_path / "episode.gif", seed=0)
    with Image.open(result.path) as image:
        assert image.size == (160, 160)
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2
    np.testing.assert_array_equal(pixels, pixels[::16, ::16].repeat(16, 0).repeat(16, 1))


def test_another_suffix_is_refused_before_anything_is_played(tmp_path):
    with pytest.raises(ValueError, match=r"episode\.avi must end in \.gif or \.mp4"):
        record(None, tmp_path / "episode.avi", seed=0)


@pytest.mark.parametrize(("suffix", "packages"), [(".gif", "PIL"), (".mp4", "imageio and imageio_ffmpeg")])
def test_missing_video_packages_name_the_extra(tmp_path, monkeypatch, suffix, packages):
    monkeypatch.setattr(recording, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf"{packages}: pip install 'perdqn\[video\]'"):
        record(None, tmp_path / f"episode{suffix}", seed=0)


@pytest.mark.parametrize("name", ["Mute", "Modeless"])
def test_an_environment_that_does_not_draw_is_refused_and_leaves_no_file(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} cannot be recorded"):
        record(agent(corridor(name)), tmp_path / "episode.gif", seed=0)
    assert list(tmp_path.iterdir()) == []


# -- films


def frames_of(filmed):
    """Milliseconds that each frame of a film is shown, and how bright its corner is."""
    with Image.open(BytesIO(filmed.gif)) as image:
        assert image.size == (filmed.width, filmed.height)
        steps = [image.seek(i) or image.convert("RGB").getpixel((0, 0))[0] for i in range(image.n_frames)]
        return image.info["duration"], steps


def test_a_film_shows_every_step_of_a_short_episode():
    assert frames_of(film(agent(corridor()), seed=0)) == (50, [0, 40, 80, 120, 160])


@pytest.mark.parametrize(("length", "every"), [(99, 1), (100, 2), (199, 2), (200, 4), (1000, 16), (5000, 16)])
def test_a_film_of_a_long_episode_is_thinned_evenly_and_runs_no_faster(length, every):
    module = agent(corridor(kwargs={"length": length}))
    duration, steps = frames_of(film(module, seed=0))
    length = min(length, recording.MAX_STEPS)
    assert steps == [40 * step % 256 for step in range(0, length + 1, every)]
    assert duration == 50 * every


def test_a_film_is_small_however_large_and_varied_its_frames_are(monkeypatch):
    monkeypatch.setattr(recording, "LARGEST_SIDE", 80)
    monkeypatch.setattr(recording, "MAX_BYTES", 40_000)
    filmed = film(agent(corridor("Speckled", kwargs={"length": 20})), seed=0)
    assert (filmed.height, filmed.width) == (40, 80)
    assert 20_000 < len(filmed.gif) <= 40_000
    duration, steps = frames_of(filmed)
    assert duration == 200
    # the palette of a frame is of 256 colours, so its corner is about as bright
    assert [round(step / 10) for step in steps] == [*range(0, 21, 4)]


def test_a_film_ends_where_it_is_stopped():
    asked = iter([False, False, True])
    assert frames_of(film(agent(corridor()), seed=0, is_stopped=lambda: next(asked)))[1] == [0, 40, 80]


@pytest.mark.parametrize("name", ["Mute", "Modeless"])
def test_an_environment_that_does_not_draw_is_not_filmed(name):
    with pytest.raises(ValueError, match=f"{name} cannot be recorded"):
        film(agent(corridor(name)), seed=0)


def test_a_film_without_pillow_names_the_extra(monkeypatch):
    monkeypatch.setattr(recording, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"a film needs PIL: pip install 'perdqn\[video\]'"):
        film(None, seed=0)

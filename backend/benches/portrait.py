"""A stylised portrait with full-size networks of random weights: the loop, its parts, what comes before and after.

`portrait_3000` is the time of the paper's 3,000 steps on a CUDA device, beside rows for the start-up, the pictures of
the style, the last stage at 1024 px, every part of a step, and the peak memory of the default and of the small way.
`portrait_loop_cpu` is what can be said without one: how much of a step is the loop's own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from backend.benches.measuring import Bench, Options, Row, absent_row, interleaved, time_row, value_row
from backend.errors import MODEL_MISSING, UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from backend.context import Context
    from backend.diffusion.interfaces import Conditions
    from backend.diffusion.multiview import MultiView
    from backend.diffusion.stable_diffusion import StableDiffusion
    from backend.splats.stylise import StyliseSettings, Teachers
    from blender_addon.shared.gaussians import GaussianCloud

NAME = "portrait_3000"
NO_GPU = f"{NAME} needs a CUDA device and there is none here: python -m backend bench {NAME} where there is one"

TARGET_S, TARGET_STEP_MS = 180.0, 60.0
"""On an H100-class card: 3,000 steps within 3 minutes."""

MEMORY_GB = {"default": 12.0, "small": 8.0}
"""What may be taken at most."""

FACE_STEPS = 300
MEMORY_STEPS = 8
FACE_TOKENS, WORDS = 16, 77


@dataclass(frozen=True)
class Models:
    """Both networks, with random weights."""

    portrait: StableDiffusion
    around: MultiView


def full_size(device: str, dtype: torch.dtype) -> Models:
    """Stable Diffusion 1.5 with control network and plus-face, and MVDream, of their published sizes."""
    from backend.benches.diffusion import NETWORKS, random_network
    from backend.benches.guidance import full_size as portrait_of
    from backend.diffusion.multiview import MultiView

    portrait = portrait_of(device, dtype)
    network = next(row for row in NETWORKS if row.name == "mvdream")
    unet = random_network(network, dtype, device)
    return Models(portrait, MultiView(unet, copy.deepcopy(portrait.coder), portrait.schedule))


def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The default body's head in its frame: vertices, triangles and landmarks."""
    import numpy as np

    from backend.human.model import load_default_body
    from backend.splats.stylise_bind import frame_of, start_triangles

    body = load_default_body()
    rest = np.asarray(body.rest(np.zeros(20))[0], np.float64)
    frame = frame_of(body, rest)
    landmarks = np.asarray(body.face_landmarks @ rest)
    return frame.to_unit(rest), body.triangles[start_triangles(body)], frame.to_unit(landmarks)


def teachers_of(models: Models, device: str, landmarks: np.ndarray, *, recorded: bool) -> Teachers:
    """Both with random words, a random face and a style of unit statistics."""
    import torch

    from backend.diffusion.face_adapter import ImageTokens
    from backend.diffusion.moments import Moments
    from backend.diffusion.views import ViewTexts
    from backend.splats.stylise import Teacher, Teachers
    from backend.splats.stylise_teachers import AroundConditions, HeadConditions

    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    wide, other = (model.unet.config.cross_attention_dim for model in (models.portrait, models.around))
    face = ImageTokens(random(1, FACE_TOKENS, wide), random(1, FACE_TOKENS, wide))
    single = HeadConditions(ViewTexts(random(4, WORDS, wide)), random(1, WORDS, wide), face, 0.6, landmarks)
    four = AroundConditions(random(1, WORDS, other), random(1, WORDS, other))
    channels = models.portrait.coder.vae.config.latent_channels
    style = Moments(torch.zeros(channels, device=device), torch.eye(channels, device=device))
    return Teachers(Teacher(models.portrait, single, recorded), Teacher(models.around, four, recorded), style)


def loop_s(
    start: GaussianCloud, teachers: Teachers, settings: StyliseSettings, context: Context
) -> tuple[float, GaussianCloud]:
    """Seconds of a whole loop, and its result."""
    from backend.splats.stylise import stylise

    wait(context.device)
    began = time.perf_counter()
    made = stylise(start, teachers, settings, context)
    wait(context.device)
    return time.perf_counter() - began, made.cloud


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


# ---- the parts of a step ---------------------------------------------------------------------------------------------


def parts(
    models: Models, teachers: Teachers, cloud: GaussianCloud, settings: StyliseSettings, device: str
) -> dict[str, Callable[[], Any]]:
    """What a step does, each alone at the loop's sizes; networks replayed from recordings where there is a GPU."""
    import torch

    from backend.diffusion.captured import Captured
    from backend.splats.cloud_parameters import CloudParameters
    from backend.splats.optimise_cloud import Draw
    from backend.splats.stylise_views import draw_groups, draw_views

    chance = torch.Generator().manual_seed(0)
    single = draw_views(settings.cameras, 1, settings.portrait_px, chance)
    four = draw_groups(settings.cameras, 1, settings.around_px, chance)
    parameters = CloudParameters.from_cloud(cloud, 1.0, settings.rates, degree=0, device=device)
    assert teachers.portrait is not None and teachers.around is not None
    told, around = (_doubled(t.conditions(v)) for t, v in ((teachers.portrait, single), (teachers.around, four)))
    plain = replace(told, control_images=(), control_scales=())
    alone = type(models.portrait)(models.portrait.unet, models.portrait.coder, models.portrait.schedule)
    steps = models.portrait.schedule.steps

    def latents(coder: Any, count: int, size_px: int) -> tuple[Tensor, Tensor]:
        side = size_px // coder.factor
        values = torch.randn(2 * count, coder.vae.config.latent_channels, side, side, device=device)
        return values, torch.full((2 * count,), steps // 2, device=device)

    one, others = latents(alone.coder, 1, settings.portrait_px), latents(models.around.coder, 4, settings.around_px)
    unet = Captured(lambda values, times: alone.predict(values, times, plain))
    views = Captured(lambda values, times: models.around.predict(values, times, around))
    runs: dict[str, Callable[[], Any]] = {"unet": lambda: unet(*one), "mvdream": lambda: views(*others)}
    if models.portrait.controls:
        runs["controlnet"] = _control(models.portrait, told, one)
    runs["vae_single"] = _encode(models.portrait, 1, settings.portrait_px, device)
    runs["vae_four"] = _encode(models.around, 4, settings.around_px, device)

    def drawing() -> None:
        parameters.zero_grad()
        draw = Draw(parameters, torch.ones(3, device=device), 0, antialiased=True)
        pictures = [draw(v.to(device).cameras).rgb for v in (single, four)]
        sum(picture.sum() for picture in pictures if picture is not None).backward()  # pyright: ignore

    drawing()
    return {**runs, "drawing": drawing, "adam": parameters.optimizer_step}


def _control(model: StableDiffusion, told: Conditions, latents: tuple[Tensor, Tensor]) -> Callable[[], Any]:
    import torch

    from backend.diffusion.captured import Captured

    network, image = model.controls[0], told.control_images[0].to(model.unet.dtype)
    text = told.text.to(model.unet.dtype)

    def call(values: Tensor, times: Tensor) -> Tensor:
        with torch.no_grad():
            return network(values.to(text), times, text, image, return_dict=False)[1]

    recorded = Captured(call)
    return lambda: recorded(*latents)


def _encode(model: Any, count: int, size_px: int, device: str) -> Callable[[], Any]:
    import torch

    pictures = torch.rand(count, 3, size_px, size_px, device=device, requires_grad=True)

    def run() -> None:
        pictures.grad = None
        model.encode(pictures).float().square().sum().backward()

    return run


def _doubled(both: tuple[Conditions, Conditions]) -> Conditions:
    """Both sides of the guidance as one batch."""
    from backend.diffusion.guidance import stacked

    return stacked((both[1], both[0]))


def part_rows(runs: dict[str, Callable[[], Any]], step_ms: float, repeats: int, device: str) -> list[Row]:
    """One row per part, and one for what is left of a step."""

    def waited(run: Callable[[], Any]) -> Callable[[], Any]:
        def whole() -> None:
            run()
            wait(device)

        return whole

    times = interleaved({name: waited(run) for name, run in runs.items()}, repeats, warm_up=3)
    name_of = _device_name(device)
    rows = [
        value_row(
            f"portrait_part_{name}", found.median_ms, "ms", "a whole step", step_ms, repeats,
            f"{100 * found.median_ms / step_ms:.0f} % of a step", device=name_of,
        )
        for name, found in times.items()
    ]  # fmt: skip
    rest = step_ms - sum(found.median_ms for found in times.values())
    note = "conditions, the style map, growing and Python; negative where parts overlap"
    return [*rows, replace(value_row("portrait_part_rest", rest, "ms", "", None, repeats, note, device=name_of))]


def _device_name(device: str) -> str | None:
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else None


# ---- the benches -----------------------------------------------------------------------------------------------------


def portrait_3000(options: Options) -> list[Row]:
    """The whole portrait on a GPU.

    Raises:
        UserError: Code 3 without a CUDA device.
    """
    import torch

    from backend.context import Context

    if not torch.cuda.is_available():
        raise UserError(NO_GPU, MODEL_MISSING, "NO_DEVICE")
    from backend.diffusion import gate
    from backend.splats.head_start import head_start
    from backend.splats.stylise import StyliseSettings

    gate.import_diffusers().utils.logging.set_verbosity_error()
    device, card = "cuda", torch.cuda.get_device_name()
    context = replace(Context.quiet(device=device), scratch=options.scratch)
    vertices, triangles, landmarks = head()
    start = head_start(vertices, triangles)
    settings = StyliseSettings(iterations=options.repeats or 3000)
    began = time.perf_counter()
    models = full_size(device, torch.float16)
    teachers = teachers_of(models, device, landmarks, recorded=True)
    loop_s(start, teachers, replace(settings, iterations=2), context)  # kernels are chosen
    starting = time.perf_counter() - began
    torch.cuda.reset_peak_memory_stats()
    seconds, cloud = loop_s(start, teachers, settings, context)
    peak = torch.cuda.max_memory_allocated()
    step_ms = 1e3 * seconds / settings.iterations
    note = (
        f"{settings.iterations} steps, {step_ms:.1f} ms each (target {TARGET_STEP_MS:.0f}); {len(start)} to "
        f"{len(cloud)} Gaussians; recordings made on the way; peak memory {peak / 1e9:.2f} GB"
    )
    against = "3 minutes for 3,000 steps"
    allowed = TARGET_S * settings.iterations / 3000
    rows = [
        value_row(NAME, seconds, "s", against, allowed, 1, note, device=card),
        value_row("portrait_startup", starting, "s", "", None, 1, "networks made and warmed up", device=card),
        style_row(models, device, context, settings.portrait_px),
        face_row(cloud, teachers, settings, context),
    ]
    rows += part_rows(parts(models, teachers, cloud, settings, device), step_ms, 20, device)
    del teachers, models
    torch.cuda.empty_cache()
    return [*rows, *(memory_row(way, options, landmarks, start) for way in MEMORY_GB)]


def style_row(models: Models, device: str, context: Context, size_px: int, images: int = 20, steps: int = 20) -> Row:
    """The pictures of a style, with nothing remembered."""
    import torch

    from backend.diffusion.style_statistics import style_statistics
    from backend.splats.stylise_teachers import plain_conditions

    text = torch.randn(1, WORDS, models.portrait.unet.config.cross_attention_dim, device=device)
    coder, controls = models.portrait.coder, len(models.portrait.controls)
    told = plain_conditions(controls, text, size_px), plain_conditions(controls, -text, size_px)
    side = size_px // coder.factor
    wait(device)
    began = time.perf_counter()
    style_statistics(
        models.portrait, *told, (coder.vae.config.latent_channels, side, side), name=("bench",), context=context,
        cache=context.scratch / "styles", images=images, steps=steps,
    )  # fmt: skip
    wait(device)
    seconds = time.perf_counter() - began
    note = f"{images} pictures of {steps} steps; once per style, then remembered"
    return value_row("portrait_style_images", seconds, "s", "", None, 1, note, device=_device_name(device))


def face_row(
    cloud: GaussianCloud, teachers: Teachers, settings: StyliseSettings, context: Context, steps: int = FACE_STEPS
) -> Row:
    """The last stage: 512 px windows of the face at 1024 px."""
    from backend.splats.stylise import face_settings

    seconds, finer = loop_s(cloud, teachers, face_settings(settings, steps, len(cloud)), context)
    note = f"{steps} steps on windows of the face, {1e3 * seconds / steps:.1f} ms each; {len(finer)} Gaussians"
    return value_row("portrait_face_1024", seconds, "s", "", None, 1, note, device=_device_name(context.device))


def memory_row(way: str, options: Options, landmarks: np.ndarray, start: GaussianCloud) -> Row:
    """Peak memory of some steps from the start, models included, as a card of that size would do them.

    Default: both halves of the guidance at once, recorded. Small: one after the other, nothing recorded.
    """
    import torch

    from backend import memory
    from backend.context import Context
    from backend.splats.stylise import StyliseSettings

    small, most = way == "small", MEMORY_GB[way]
    settings = StyliseSettings(iterations=MEMORY_STEPS, coarse_until=0.0, grow=None)
    if small:
        halves = {"portrait": replace(settings.portrait, split=True), "around": replace(settings.around, split=True)}
        settings = replace(settings, **halves)
    torch.cuda.empty_cache()
    name, against = f"portrait_peak_{way}", f"{most:.0f} GB"
    context = replace(Context.quiet(device="cuda"), scratch=options.scratch)
    try:
        models = full_size("cuda", torch.float16)
        torch.cuda.reset_peak_memory_stats()
        loop_s(start, teachers_of(models, "cuda", landmarks, recorded=not small), settings, context)
    except torch.OutOfMemoryError as error:
        return absent_row(name, "GB", against, f"this card is too small: {error}"[:200])
    finally:
        memory.free_caches()
    peak = torch.cuda.max_memory_allocated() / 1e9
    note = f"{MEMORY_STEPS} steps; reserved {torch.cuda.max_memory_reserved() / 1e9:.2f} GB"
    return value_row(name, peak, "GB", against, most, 1, note, device=torch.cuda.get_device_name())


def portrait_loop_cpu(options: Options) -> list[Row]:
    """What a step costs beside the networks: with one that says nothing, against its five drawings alone."""
    import torch

    from backend.context import Context
    from backend.diffusion.guidance import Guidance
    from backend.diffusion.moments import Moments
    from backend.splats.cloud_parameters import CloudParameters
    from backend.splats.head_start import head_start
    from backend.splats.optimise_cloud import Draw
    from backend.splats.stylise import StyliseSettings, Teacher, Teachers, stylise
    from backend.splats.stylise_views import draw_groups, draw_views

    vertices, triangles, _ = head()
    start = head_start(vertices, triangles, count=4000)
    silent, steps = _Silent(), 10
    teacher = Teacher(silent, silent.conditions)
    plain = Guidance(scale=1.0)
    settings = StyliseSettings(
        iterations=steps, portrait_px=128, around_px=64, coarse_px=128, grow=None, portrait=plain,
        around=replace(plain, group=4),
    )  # fmt: skip
    style = Moments(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))

    def loop() -> None:
        stylise(start, Teachers(teacher, teacher, style), settings, Context.quiet())

    def drawings() -> None:
        chance, parameters = torch.Generator().manual_seed(0), CloudParameters.from_cloud(start, 1.0, degree=0)
        for _ in range(steps):
            parameters.zero_grad()
            draw = Draw(parameters, torch.ones(3), 0, antialiased=True)
            for views in (draw_views(settings.cameras, 1, 128, chance), draw_groups(settings.cameras, 1, 64, chance)):
                picture = draw(views.to("cpu").cameras).rgb
                assert picture is not None
                picture.sum().backward(retain_graph=True)

    times = interleaved({"ours": loop, "theirs": drawings}, options.repeats or 5)
    note = f"{steps} steps of 4,000 Gaussians at 128 and four times 64 px, without networks; ratio: the drawings' share"
    return [time_row("portrait_loop_cpu", times["ours"], "its drawings alone", times["theirs"], note)]


class _Silent:
    """A denoiser of no weight: latents are small pictures, and the noise is always none."""

    def __init__(self) -> None:
        import torch

        from backend.diffusion.interfaces import NoiseSchedule

        angles = torch.linspace(0.02, 1.55, 1000, dtype=torch.float64)
        self.schedule = NoiseSchedule(angles.cos(), angles.sin(), "epsilon")
        self.sources = ()

    def encode(self, images: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.avg_pool2d(images, 8)

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return noisy * 0

    def conditions(self, views: Any) -> tuple[Conditions, Conditions]:
        import torch

        from backend.diffusion.interfaces import Conditions

        none = Conditions(torch.zeros(len(views), 1, 1))
        return none, none


BENCHES: dict[str, Bench] = {NAME: portrait_3000, "portrait_loop_cpu": portrait_loop_cpu}

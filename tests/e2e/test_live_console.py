"""`cptron train` on a terminal draws the live block, and `cptron watch` shows the same of the run on the disk."""

from __future__ import annotations

from pathlib import Path

from commands import call, cptron, environment, records
from terminal import Terminal, on_a_terminal, shown
from tiny_world import SHORT, World

WIDTH, HEIGHT = 100, 40


def labels(terminal: Terminal) -> list[str]:
    """First words of the lines of the block that the terminal shows."""
    known = ("step", "time", "speed", "loss", "valid", "memory", "saved", "slow")
    return [row.split()[0] for row in terminal.rows if row[:9].split() and row[:9].rstrip() in known]


def test_a_terminal_shows_the_run_in_place_and_watch_shows_it_again(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*cptron("train", world.config, f"run.dir={run}"), *SHORT]
    env = environment(TERM="xterm", NO_COLOR="1")
    code, text = on_a_terminal(words, WIDTH, HEIGHT, env, timeout_s=240)
    assert code == 0, text

    def look(terminal: Terminal) -> None:
        assert labels(terminal).count("step") <= 1, "the block is drawn twice"
        assert all(len(row) < WIDTH for row in terminal.rows if row[:9].rstrip() in ("step", "loss", "speed"))

    terminal = shown(text, WIDTH, HEIGHT, look)
    assert "\x1b[31m" not in text
    for place in (3, 6):  # a step that comes soon after a drawing is drawn with what comes next
        assert f"step     {place} of 6" in text
    assert labels(terminal) == ["step", "time", "speed", "loss", "valid", "memory", "saved"]
    block = "\n".join(terminal.rows)
    last = records(run, "step")[-1]
    assert (
        f"loss     {last['loss_nats_per_token']:.4f}  domain {last['loss_nats_per_token/domain']:.4f}"
        in block
    )
    assert "tokens/s/rank" in block and "MFU" not in block, "the peak of a CPU is not known"
    assert "saved    step 6  0 steps ago" in block and "finished 6 steps" in block
    notes = [row for row in terminal.rows if row.startswith(("saved /", "eval at step", "step-0 gate"))]
    assert len(notes) == 1 + 2 + 2 * 3, "what is printed above the block stays"

    seen = call(cptron("watch", run), timeout_s=240)
    assert (
        seen.returncode == 0
        and "step     6 of 6  100.0%" in seen.stdout
        and "finished 6 steps" in seen.stdout
    )
    code, text = on_a_terminal(cptron("watch", run), 60, 12, env, timeout_s=240)
    assert code == 0 and labels(shown(text, 60, 12)) == labels(terminal)

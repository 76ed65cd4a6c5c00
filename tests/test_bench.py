"""The bench: the workload is as promised and the books are right. Nothing here is held to a clock."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from engine.decode import TextStream
from engine.host import ModelHost
from engine.model import LanguageModel
from engine.serving.lean import LeanDecoder
from engine.serving.steps import make_step, make_steps
from tests.bench import __main__ as command
from tests.bench import cells, child
from tests.bench.cells import Cell, measure, run_cell
from tests.bench.drive import Played, Times, Turn, play
from tests.bench.figures import memory, percentile, played_figures, ratios, reached
from tests.bench.limit import (
    Machine,
    measure_limit,
    measure_machine,
    prefill_operations,
    step_bytes,
)
from tests.bench.llama_cpp import LlamaCpp, check_state, encode, read_stream, state_grammar
from tests.bench.memory import forget_peak, held_bytes, peak_bytes
from tests.bench.original import Original
from tests.bench.ours import Ours, make_endless, make_ours
from tests.bench.plot import draw
from tests.bench.report import render
from tests.bench.run import Options, parse_forms, run_cells, warn_of_load
from tests.bench.slope import slope_mb
from tests.bench.workload import Lengths, Workload, check_lengths, make_workload
from tests.fakes import tiny_language_model, tiny_tokenizer

LENGTHS = Lengths(prompt=400, prefix=280, reply=6)
STATE = {"trust": 0.05, "relationship": -0.02, "flags": [False] * 8}


@pytest.fixture(scope="module")
def model(one_thread: None) -> LanguageModel:
    """A tiny model whose lines never end early."""
    made = tiny_language_model()
    make_endless(made)
    return made


@pytest.fixture(scope="module")
def workload(model: LanguageModel) -> Workload:
    return make_workload(model.encoder, players=3, turns=2, lengths=LENGTHS)


# --- the workload ----------------------------------------------------------------------------------


def test_prompts_are_as_long_as_the_issue_says(model):
    made = make_workload(model.encoder, players=2, turns=2)
    check_lengths(made, Lengths(), model.encoder.state_id)
    assert len(made.prefix) == 280
    assert len(made.ids(0, 0)) == len(made.ids(1, 1)) == 400
    assert made.reply_tokens == 40
    assert made.sampling(3).max_new_tokens == 40


def test_only_the_constant_part_is_shared(workload):
    prompts = [workload.ids(player, turn) for player in range(3) for turn in range(2)]
    assert {ids[:280] for ids in prompts} == {workload.prefix}
    assert len({ids[280:] for ids in prompts}) == len(prompts)


def test_the_workload_is_the_same_in_every_process(model, workload):
    assert make_workload(model.encoder, players=3, turns=2, lengths=LENGTHS) == workload
    assert Workload.from_json(json.loads(json.dumps(workload.to_json()))) == workload


def test_prompts_of_other_lengths_are_refused(model, workload):
    with pytest.raises(ValueError, match="399 tokens"):
        check_lengths(workload, replace(LENGTHS, prompt=399), model.encoder.state_id)
    with pytest.raises(ValueError, match="<STATE>"):
        check_lengths(workload, LENGTHS, workload.ids(0, 0)[0])


# --- the players -----------------------------------------------------------------------------------


class Scripted:
    """Answers at once, and counts."""

    every_player_starts_cold = True

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.closed = False

    def take(self, turn: Turn) -> Times | None:
        self.turns.append(turn)
        return Times(0.01, 0.02, 0.04)

    def notes(self) -> dict[str, object]:
        return {"note": 1}

    def close(self) -> None:
        self.closed = True


def test_each_player_takes_a_cold_turn_and_then_the_warm_ones(workload):
    one = Scripted()
    played = play(one, workload, players=3, rounds=2)
    assert (len(played.cold), len(played.warm), played.cut_short) == (3, 6, False)
    taken = sorted((turn.player, turn.number) for turn in one.turns)
    assert taken == [(player, number) for player in range(3) for number in range(3)]
    assert all(turn.ids == workload.ids(turn.player, turn.number) for turn in one.turns)


def test_a_contestant_that_keeps_nothing_has_one_first_turn(workload):
    one = Scripted()
    one.every_player_starts_cold = False
    assert len(play(one, workload, players=3, rounds=1).cold) == 1


def test_no_turn_is_begun_when_time_has_come(workload):
    seconds = iter(range(1000))
    played = play(Scripted(), workload, players=1, rounds=5, limit_s=3, clock=lambda: next(seconds))
    assert played.cut_short
    assert 1 <= len(played.warm) < 5


def test_a_failing_contestant_fails_the_run(workload):
    class Broken(Scripted):
        def take(self, turn: Turn) -> Times | None:
            raise RuntimeError("no server")

    with pytest.raises(RuntimeError, match="no server"):
        play(Broken(), workload, players=2, rounds=1)


# --- the contestants -------------------------------------------------------------------------------


def test_our_lines_have_exactly_the_promised_tokens(model, workload, monkeypatch):
    pushed: dict[TextStream, int] = {}
    plain = TextStream.push

    def counted(self: TextStream, token: int) -> str | None:
        pushed[self] = pushed.get(self, 0) + 1
        return plain(self, token)

    monkeypatch.setattr(TextStream, "push", counted)
    ours = make_ours(model, workload, players=3, forms=((0, "whole"),))
    played = play(ours, workload, players=3, rounds=2)
    ours.close()
    assert list(pushed.values()) == [LENGTHS.reply] * 9
    assert all(0 < one.state <= one.first <= one.whole for one in played.cold + played.warm)
    assert ours.notes()["weights"] == {"more": "whole"}
    assert ours.notes()["cache_bytes_per_token"] == 2 * 2 * 3 * 2 * 16


def test_our_prefix_is_read_once(model, workload):
    ours = make_ours(model, workload, players=2)
    play(ours, workload, players=2, rounds=2)
    load = ours._host.load
    ours.close()
    assert load["prefix_misses"] + load["prefix_hits"] == 6
    assert load["prefix_hits"] >= 4  # all warm turns


def test_no_token_of_an_endless_model_ends_or_hides_a_line(model):
    texts = [model.tokenizer.decode([token]) for token in range(len(model.tokenizer))]
    held = {text for token, text in enumerate(texts) if token not in model.suppressed}
    assert {"a", "Z", " ", "."} <= held
    assert not held & {"\n", "(", "[", "*", '"', ""}
    assert model.stop_ids == frozenset()


def test_the_original_writes_the_whole_line_and_reads_the_prompt_again(model, workload):
    one = Original(model, workload)
    forwards = []

    def watch(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        forwards.append(bool(given.get("output_hidden_states")))

    handle = model.model.register_forward_pre_hook(watch, with_kwargs=True)
    times = one.take(Turn(0, 0, workload.ids(0, 0)))
    handle.remove()
    one.close()
    assert times is not None
    assert times.first < times.state == times.whole
    assert len(forwards) == LENGTHS.reply + 1
    assert forwards[-1]
    assert not any(forwards[:-1])
    assert one.notes() == {"precision": "fp32"}


def test_the_original_leaves_a_turn_whose_time_has_come(model, workload):
    one = Original(model, workload)
    assert one.take(Turn(0, 0, workload.ids(0, 0), give_up_at=0.0)) is None
    one.close()


def served(bodies: list[dict[str, Any]], reply: int, state: str) -> httpx.Client:
    """A llama.cpp server that writes `reply` tokens, and `state` where a grammar is given."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        bodies.append(body)
        if "grammar" in body:
            events = [{"content": state, "tokens": [1, 2, 3]}]
        else:
            events = [{"content": f" w{at}", "tokens": [at]} for at in range(reply)]
        events.append({"content": "", "tokens": [], "stop": True})
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return httpx.Response(200, text=text)

    return httpx.Client(transport=httpx.MockTransport(answer))


def rival(workload: Workload, client: httpx.Client) -> LlamaCpp:
    server = SimpleNamespace(listening_address="http://127.0.0.1:1")
    return LlamaCpp(server, tiny_tokenizer(), workload, client)


def test_llama_cpp_goes_on_in_the_same_slot_for_the_state(workload):
    bodies: list[dict[str, Any]] = []
    one = rival(workload, served(bodies, LENGTHS.reply, json.dumps(STATE)))
    times = one.take(Turn(2, 1, workload.ids(2, 1)))
    assert times is not None
    assert 0 < times.first < times.state == times.whole
    line, state = bodies
    assert line["id_slot"] == state["id_slot"] == 2
    assert line["prompt"] == list(workload.ids(2, 1))
    assert line["ignore_eos"]
    assert line["n_predict"] == LENGTHS.reply
    written = [*line["prompt"], *range(LENGTHS.reply)]
    assert state["prompt"][: len(written)] == written
    assert "root ::=" in state["grammar"]
    assert one.notes() == {"json_tokens": 3.0}
    one.close()


def test_llama_cpp_must_write_as_many_tokens_as_the_others(workload):
    one = rival(workload, served([], LENGTHS.reply - 1, json.dumps(STATE)))
    with pytest.raises(RuntimeError, match="5 tokens, not 6"):
        one.take(Turn(0, 0, workload.ids(0, 0)))
    one.close()


@pytest.mark.parametrize("text", ["", '{"trust": 0.1', "[]", '{"trust": 0, "flags": []}'])
def test_half_a_state_is_none(text):
    check_state(json.dumps(STATE))
    with pytest.raises(RuntimeError, match="not what was asked for"):
        check_state(text)


def test_a_server_that_keeps_a_connection_alive_says_nothing():
    lines = [": ", "", 'data: {"content": " Hello", "tokens": [7]}', ":"]
    answer = read_stream(iter(lines), 0.0)
    assert (answer.ids, answer.text) == ((7,), " Hello")


def test_what_the_server_complains_of_is_told():
    for lines in (['{"error": "slot"}'], ['data: {"error": {"message": "slot"}}']):
        with pytest.raises(RuntimeError, match="slot"):
            read_stream(iter(lines), 0.0)


def test_the_grammar_allows_whole_tokens_only():
    tokenizer = tiny_tokenizer()
    rules = dict(line.split(" ::= ") for line in state_grammar(tokenizer).splitlines())
    assert list(rules) == ["root", "number", "digit", "flag"]
    assert rules["root"].count("flag") == 8
    assert rules["flag"].split(" | ")[0] == " ".join(
        f"<[{at}]>" for at in encode(tokenizer, "true")
    )
    assert rules["digit"].count("|") == 9


# --- figures ---------------------------------------------------------------------------------------


def test_percentiles_lie_between_neighbours():
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile(range(101), 0.95) == 95


def figures(turn_ms: float, per_s: float, peak: float, **more: Any) -> dict[str, Any]:
    wait = {"p50": turn_ms, "p95": 2 * turn_ms}
    waits = {"state_ms": wait, "first_word_ms": wait, "turn_ms": wait}
    cold = {"state_ms": turn_ms, "first_word_ms": turn_ms, "turn_ms": turn_ms}
    rest = {"turns": 3, "cut_short": False, "cold": cold}
    return {**waits, "turns_per_s": per_s, "peak_mb": peak, **rest, **more}


def table(players: tuple[int, ...] = (1, 4, 16, 64)) -> dict[str, dict[str, Any]]:
    """Ours takes 100 ms and is five times as fast as the original, three times as llama.cpp."""
    return {
        str(count): {
            "ours": figures(100, 10, 500 + 2 * count, cache_bytes_per_token=2**20 / 440),
            "original": figures(500, 0.5, 900),
            "llama_cpp": figures(300, 1, 300 + count),
        }
        for count in players
    }


def test_times_become_milliseconds_and_rates():
    played = Played(
        cold=(Times(1.0, 2.0, 4.0),),
        warm=(Times(0.1, 0.2, 0.4), Times(0.3, 0.4, 0.6)),
        seconds=0.5,
        cut_short=False,
    )
    found = played_figures(played, peak=2**21, held=2**20)
    assert found["state_ms"]["p50"] == pytest.approx(200)
    assert found["turn_ms"]["p95"] == pytest.approx(590)
    assert found["cold"]["first_word_ms"] == pytest.approx(2000)
    assert (found["turns_per_s"], found["turns"], found["peak_mb"]) == (4.0, 2, 2.0)


def test_a_ratio_above_one_means_that_we_are_faster():
    assert ratios(table()) == {
        "turn_original_1": 5.0,
        "turn_llamacpp_1": 3.0,
        "tps_original_16": 20.0,
        "tps_llamacpp_16": 10.0,
        "state_llamacpp_1": 3.0,
    }


def test_what_was_not_measured_is_none():
    few = table((1, 4))
    few["1"]["llama_cpp"] = {"failed": "exit status -11"}
    found = ratios(few)
    assert found["turn_original_1"] == 5.0
    assert found["turn_llamacpp_1"] is found["tps_original_16"] is None
    used = memory(few, 440)
    assert used["ours_over_cache"] is None
    aims = reached(found, few, used)
    assert aims["turn_original_1"] is True
    assert aims["tps_64_not_below_16"] is aims["memory_per_player"] is None


def test_memory_of_a_further_player_is_told_in_caches():
    used = memory(table(), 440)
    assert used["ours_per_player_mb"] == 2.0
    assert used["cache_per_player_mb"] == pytest.approx(1.0)
    assert used["ours_over_cache"] == pytest.approx(2.0)
    aims = reached(ratios(table()), table(), used)
    assert aims["memory_per_player"] is False
    assert aims["state_llamacpp_1"] is False
    assert aims["tps_64_not_below_16"] is True


def test_the_peak_is_counted_anew():
    forget_peak()
    if not peak_bytes():
        pytest.skip("this system does not tell")
    before = peak_bytes()
    block = torch.ones(2**24)
    assert peak_bytes() >= before + 2**25
    del block
    assert peak_bytes() >= held_bytes()


# --- the limit -------------------------------------------------------------------------------------


def test_the_limit_counts_weights_and_caches_once(model):
    decoder = LeanDecoder(model.model, 500)
    weights = decoder.weights.bytes
    a_token = 2 * 3 * 2 * 16 * 4  # keys and values, layers, heads, width, fp32
    found = step_bytes(decoder, make_step("whole", decoder), 16, 280, 140)
    assert found == weights + (280 + 16 * 140) * a_token
    linear = [one for one in model.model.model.modules() if isinstance(one, torch.nn.Linear)]
    products = 2 * sum(one.weight.numel() for one in linear)
    attention = 4 * 3 * 64 * (281 + 282)
    assert prefill_operations(decoder, 280, 2) == 2 * products + attention


def test_fractions_are_told_with_what_they_come_from(model, workload):
    machine = Machine(fp32_bandwidth=2e9, int8_bandwidth=1e9, matrix_speed=1e9)
    decoder = LeanDecoder(model.model, 500)
    limit = measure_limit(decoder, make_steps(decoder), workload, model.suppressed, machine)
    for lines in (1, 16):
        own = LENGTHS.prompt + LENGTHS.reply // 2 - LENGTHS.prefix
        step = make_step("whole", decoder)
        ideal = step_bytes(decoder, step, lines, LENGTHS.prefix, own) / 2e9
        measured = limit[f"step_ms_{lines}"] / 1e3
        assert limit[f"decode_fraction_{lines}"] == pytest.approx(ideal / measured)
    assert limit["prefill_fraction"] > 0
    assert limit["fp32_bandwidth_gb_s"] == 2.0


def test_a_machine_can_be_measured():
    machine = measure_machine(4, 32, 64, 2, torch.float32, probe=2**18)
    assert machine.bandwidth > 0
    assert machine.matrix_speed > 0


# --- the whole -------------------------------------------------------------------------------------


def options(tmp_path: Path, **changes: Any) -> Options:
    usual = Options(
        players=(1, 4, 16, 64),
        rounds=1,
        limit_s=9.0,
        threads=1,
        forms=None,
        gguf=None,
        contestants=("ours", "original", "llama_cpp"),
        work=tmp_path,
    )
    return replace(usual, **changes)


def stub(asked: list[Cell]) -> Any:
    def run(cell: Cell, _workload: Workload) -> dict[str, Any]:
        asked.append(cell)
        if cell.contestant == "limit":
            return {"decode_fraction_1": 0.5, "step_weights_1": "int8", "prefill_fraction": 0.25}
        found: dict[str, Any] = table((cell.players,))[str(cell.players)][cell.contestant]
        slow = cell.contestant == "original" and cell.precision == "bf16"
        return {**found, "turn_ms": {"p50": 900, "p95": 999}} if slow else found

    return run


def test_the_result_has_the_keys_that_the_issue_names(tmp_path, workload):
    asked: list[Cell] = []
    result = run_cells(options(tmp_path), Cell("", rounds=1), workload, LENGTHS, [], stub(asked))
    assert list(result["players"]) == ["1", "4", "16", "64"]
    assert all(set(row) == {"ours", "original", "llama_cpp"} for row in result["players"].values())
    assert set(result["ratios"]) == {
        "turn_original_1",
        "turn_llamacpp_1",
        "tps_original_16",
        "tps_llamacpp_16",
        "state_llamacpp_1",
    }
    assert result["limit"]["decode_fraction_1"] == 0.5
    assert json.loads(json.dumps(result)) == result
    shown = render(result)
    assert "turn_original_1" in shown
    assert "reached" in shown


def test_the_original_runs_in_its_faster_precision(tmp_path, workload):
    asked: list[Cell] = []
    run_cells(options(tmp_path), Cell(""), workload, LENGTHS, [], stub(asked))
    tried = [(one.players, one.precision) for one in asked if one.contestant == "original"]
    assert tried == [(1, "fp32"), (1, "bf16"), (4, "fp32"), (16, "fp32"), (64, "fp32")]


def test_a_contestant_that_fails_is_told_and_the_rest_stands(tmp_path, workload):
    def run(cell: Cell, prompts: Workload) -> dict[str, Any]:
        if cell.contestant in ("llama_cpp", "limit"):
            return {"failed": "exit status -11: no reason"}
        return stub([])(cell, prompts)

    result = run_cells(options(tmp_path), Cell(""), workload, LENGTHS, ["a remark"], run)
    assert result["ratios"]["turn_llamacpp_1"] is None
    assert result["ratios"]["turn_original_1"] == 5.0
    shown = render(result)
    assert "llama.cpp, 16 players: exit status -11" in shown
    assert "limit: exit status -11" in shown
    assert "a remark" in shown


def test_a_queue_that_was_cut_short_is_told(tmp_path, workload):
    def run(cell: Cell, prompts: Workload) -> dict[str, Any]:
        return {**stub([])(cell, prompts), "cut_short": cell.contestant == "original"}

    result = run_cells(options(tmp_path), Cell(""), workload, LENGTHS, [], run)
    assert "original, 64 players: stopped after 3 turns" in render(result)


def test_a_cell_measures_its_contestant(workload, monkeypatch):
    one = Scripted()
    monkeypatch.setattr(cells, "make_contestant", lambda _cell, _workload: one)
    found = run_cell(Cell("ours", players=2, rounds=2), workload)
    assert found["turn_ms"]["p50"] == pytest.approx(40)
    assert (found["turns"], found["note"]) == (4, 1)
    assert one.closed


def test_an_unknown_contestant_is_refused(workload):
    with pytest.raises(ValueError, match="nobody"):
        run_cell(Cell("nobody"), workload)


def test_any_host_can_be_measured(model, workload):
    ours = Ours(ModelHost(model), workload)
    found = measure(ours, Cell("ours", players=2, rounds=1), workload)
    assert found["host"] == "ModelHost"
    assert found["turns"] == 2


def test_a_child_process_gets_everything_in_files(workload, tmp_path, monkeypatch):
    cell = Cell("ours", players=2, forms=((2, "int8"), (0, "whole")))
    seen = []

    def in_place(command: list[str], **_: Any) -> Any:
        code = child.main(command[3:])
        return SimpleNamespace(returncode=code, stderr="")

    def run(one: Cell, prompts: Workload) -> dict[str, Any]:
        seen.append((one, prompts))
        return {"turns": 5}

    monkeypatch.setattr(child, "run_cell", run)
    monkeypatch.setattr(subprocess, "run", in_place)
    assert child.run_in_child(cell, workload) == {"turns": 5}
    assert seen == [(cell, workload)]


def test_a_child_that_dies_is_told_by_its_last_words(workload, monkeypatch):
    died = SimpleNamespace(returncode=-11, stderr="loading\nillegal instruction\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    found = child.run_in_child(Cell("llama_cpp"), workload)
    assert found == {"failed": "exit status -11: illegal instruction"}


def test_forms_are_read_from_the_command_line():
    assert parse_forms("8:int8,0:whole") == ((8, "int8"), (0, "whole"))
    assert parse_forms("auto") is None
    with pytest.raises(ValueError, match="int3"):
        parse_forms("0:int3")


def test_without_xllamacpp_the_rest_is_measured(tmp_path, workload, monkeypatch, capsys):
    def bench(asked: Options, remarks: list[str]) -> dict[str, Any]:
        assert asked.players == (1, 4)
        assert asked.rounds == 1
        return run_cells(asked, Cell(""), workload, LENGTHS, remarks, stub([]))

    monkeypatch.setattr(command, "have_llama_cpp", lambda: False)
    monkeypatch.setattr(command, "run_bench", bench)
    assert command.main(["--quick"]) == 0
    assert "pip install -r tests/bench/requirements.txt" in capsys.readouterr().out
    assert command.main(["--quick", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["players"]["4"]) == {"ours", "original"}


def test_a_busy_machine_is_told(monkeypatch):
    remarks: list[str] = []
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0), raising=False)
    warn_of_load(remarks)
    assert remarks == []
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 0.0, 0.0), raising=False)
    warn_of_load(remarks)
    assert "load 2.0" in remarks[0]


def test_the_figures_can_be_drawn(tmp_path, workload):
    pytest.importorskip("matplotlib")
    result = run_cells(options(tmp_path), Cell(""), workload, LENGTHS, [], stub([]))
    draw(result, tmp_path / "plots" / "bench.png")
    assert (tmp_path / "plots" / "bench.png").stat().st_size > 1000


def test_a_picture_that_cannot_be_drawn_is_told_at_once(monkeypatch):
    monkeypatch.setattr(command, "have_matplotlib", lambda: False)
    assert command.main(["--plot", "x.png"]) == 1


def test_the_slope_is_that_of_the_second_half() -> None:
    grown = [(100 * at, (500 if at <= 10 else 500 + (at - 10)) * 2**20) for at in range(1, 21)]
    assert slope_mb(grown) == pytest.approx(10.0, abs=0.01)
    assert slope_mb([(100, 5)]) == 0.0

"""The character of examples/character: its conversations, what is held out of them, and its judge. No training."""

import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "character"
sys.path.insert(0, str(FOLDER))

import make_character  # noqa: E402
from character import PILCROW, Character, expansions, load_character, normalize, parse, pick  # noqa: E402
from generate import Message, capitalize, conversations, held_out  # noqa: E402
from judge import judge, judge_all  # noqa: E402

PILCROW_SNAIL = load_character()
SEEDS = (0, 1, 2)
COUNT = 3_000


@pytest.fixture(scope="module", params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def written(seed: int) -> list[list[Message]]:
    return list(conversations(PILCROW_SNAIL, COUNT, seed))


def said(written: list[list[Message]], role: str) -> list[str]:
    return [message["content"] for messages in written for message in messages if message["role"] == role]


def answers_to(topic: str, count: int) -> list[tuple[str, str]]:
    """Answers to a topic, each with the name of the user that it may hold."""
    random, found = Random(topic), []
    for answer in (
        PILCROW_SNAIL.topics[topic].named if topic == "recall_name" else PILCROW_SNAIL.topics[topic].answers
    ) * count:
        chosen = {"user": random.choice(PILCROW_SNAIL.words["user"])}
        found.append((capitalize(pick(answer, PILCROW_SNAIL.words, chosen, random)), chosen["user"]))
    return found


def test_files_are_the_same_for_a_seed_and_differ_between_seeds(tmp_path: Path) -> None:
    contents: list[tuple[bytes, bytes]] = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        out, questions = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-held-out.jsonl"
        words = [sys.executable, str(FOLDER / "generate.py"), "--out", str(out), "--held-out", str(questions)]
        subprocess.run([*words, "--count", "50", "--seed", seed], check=True, env={"PYTHONHASHSEED": str(len(contents))})
        contents.append((out.read_bytes(), questions.read_bytes()))
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0]
    assert contents[0][1] != contents[2][1]
    assert contents[0][0].count(b"\n") == 50


def test_conversations_are_turns_of_user_and_assistant(written: list[list[Message]]) -> None:
    assert {len(messages) for messages in written} == {2, 4, 6, 8}
    for messages in written:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(message["content"].strip() == message["content"] != "" for message in messages)


def test_text_is_finished_and_short(written: list[list[Message]]) -> None:
    for text in said(written, "user") + said(written, "assistant"):
        assert not re.search(r"[\[\]{}|]|  | [,.?!;:]|\.\.|,\.|,,", text), text
    for answer in said(written, "assistant"):
        assert answer[0].isupper(), answer
        assert answer[-1] in ".?", answer
        assert 3 <= len(answer.split()) <= 45, answer
    assert len(set(said(written, "assistant"))) > COUNT / 2


def test_facts_are_those_of_the_character(written: list[list[Message]]) -> None:
    text = " ".join(said(written, "assistant"))
    assert set(re.findall(r"(\w+) summers", text, re.I)) == {"four", "Four"}
    assert set(re.findall(r"(\w+ hundred and \w+) books", text.lower())) == {"two hundred and twelve"}
    assert set(re.findall(r"([A-Z]\w+),? (?:the|is a|is our) toad\b", text)) == {"Odo"}
    assert set(re.findall(r"([A-Z]\w+),? (?:the|is a|is our) moth", text)) == {"Wick"}
    assert set(re.findall(r"([A-Z]\w+),? (?:the|is a|is our) bumblebee", text)) == {"Bess"}
    assert set(re.findall(r"(?:I am|My name is) ([A-Z]\w+)", text)) == {"Pilcrow"}
    assert set(re.findall(r"an old (\w+ can)", text)) == {"watering can"}


def test_a_name_that_was_told_is_the_one_that_is_used(written: list[list[Message]]) -> None:
    used: list[str] = []
    for messages in written:
        told = ""
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            told += question["content"].lower() + "\n"
            for name in re.findall(
                r"(?:ou are|Your name is|Good night,|You are welcome,|^I am sorry,) ([A-Z]\w*)", answer["content"]
            ):
                assert re.search(rf"\b{name.lower()}\b", told), messages
                used.append(name)
    assert len(used) > COUNT / 20
    assert len({*used} - {*PILCROW_SNAIL.words["user"]}) > COUNT / 60


def test_held_out_phrasings_never_occur_in_training(seed: int, written: list[list[Message]]) -> None:
    character = PILCROW_SNAIL
    questions = list(held_out(character, seed))
    assert len(questions) == 2 * len(character.topics) >= 50
    phrasings = [ask for topic in character.topics.values() for ask in topic.split_asks(seed)[1]]
    words = {**character.words, "user": ["XXX"]}
    names = "|".join({*character.words["user"], *(question["user"] for question in questions if question["user"])}).lower()
    texts = {normalize(text, character) for ask in phrasings for text in expansions(ask, words)}
    forbidden = re.compile("|".join(re.escape(text).replace("xxx", f"(?:{names})") for text in texts))
    for question in questions:
        assert forbidden.fullmatch(normalize(question["messages"][-1]["content"], character))
    earlier = [message for question in questions for message in question["messages"][:-1] if message["role"] == "user"]
    for asked in said(written, "user") + [message["content"] for message in earlier]:
        assert not forbidden.fullmatch(normalize(asked, character))


def test_the_three_sets_of_questions_have_no_phrasing_in_common() -> None:
    for topic in PILCROW_SNAIL.topics.values():
        sets = [set(topic.split_asks(seed)[1]) for seed in SEEDS]
        assert len(set.union(*sets)) == sum(map(len, sets)) == 6
        for seed in SEEDS:
            training, kept = topic.split_asks(seed)
            assert sorted(training + kept) == sorted(topic.asks)


def test_two_phrasings_of_one_question_are_refused(tmp_path: Path) -> None:
    text = PILCROW.read_text("utf-8").replace('"what is your name"', '"what is your name", "Hello, what\'s [your|my] name"')
    (tmp_path / "twice.toml").write_text(text, "utf-8")
    with pytest.raises(ValueError, match="what is your name"):
        load_character(tmp_path / "twice.toml")


@pytest.mark.parametrize("template", ["[a|b", "a]", "a|b", "[a|[b]"])
def test_brackets_that_do_not_match_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="bracket"):
        parse(template)


def test_a_template_is_all_of_its_choices() -> None:
    words = {"pet": ["cat", "dog"]}
    assert sorted(expansions("[a|the [old |]]{pet}", words)) == [
        "acat",
        "adog",
        "the cat",
        "the dog",
        "the old cat",
        "the old dog",
    ]
    made = {pick("[a|the [old |]]{pet}", words, {}, Random(seed)) for seed in range(200)}
    assert made == set(expansions("[a|the [old |]]{pet}", words))


def test_judge_accepts_what_the_character_says_on_a_topic() -> None:
    for topic in PILCROW_SNAIL.topics.values():
        for answer, user in answers_to(topic.name, 10):
            assert not judge(topic, answer, PILCROW_SNAIL, user), (topic.name, answer)


def test_judge_refuses_answers_to_other_topics() -> None:
    pairs = passed = 0
    for name in PILCROW_SNAIL.topics:
        for answer, _ in answers_to(name, 3):
            for topic in PILCROW_SNAIL.topics.values():
                if topic.name != name:
                    pairs += 1
                    passed += not judge(topic, answer, PILCROW_SNAIL, "Nobody")
    assert pairs > 10_000
    assert passed < 0.005 * pairs


def gamed(character: Character) -> list[str]:
    """Answers that say nothing, something general, or the words of many topics."""
    keywords = [group.split("|")[0] for topic in character.topics.values() for group in topic.keywords]
    lists = [
        " ".join(pick(word, character.words, {}, Random(0)) for word in keywords[start : start + size])
        for size in (10, 20, 40)
        for start in range(0, len(keywords) - size, 5)
    ]
    return ["", " ", ".", "Yes.", "I like that very much.", "No hurry, my friend.", "That is a good question.", *lists]


@pytest.mark.parametrize("answer", gamed(PILCROW_SNAIL), ids=lambda answer: answer[:20])
def test_judge_refuses_empty_and_general_answers_and_lists_of_keywords(answer: str) -> None:
    assert all(judge(topic, answer, PILCROW_SNAIL, "Anna") for topic in PILCROW_SNAIL.topics.values())


def test_judge_wants_the_name_that_was_told() -> None:
    topic = PILCROW_SNAIL.topics["recall_name"]
    assert not judge(topic, "You are Anna. It is on your leaf.", PILCROW_SNAIL, "Anna")
    assert judge(topic, "You are Ben. It is on your leaf.", PILCROW_SNAIL, "Anna")
    assert judge(topic, "You have not told me your name yet.", PILCROW_SNAIL, "")


@pytest.mark.parametrize(("wrong", "status"), [(0, 0), (9, 0), (10, 1)])
def test_exit_status_says_whether_enough_are_on_topic(tmp_path: Path, wrong: int, status: int) -> None:
    path = tmp_path / "answers.jsonl"
    rows = list(held_out(PILCROW_SNAIL, 0))
    for number, row in enumerate(rows):
        answer, user = answers_to(row["topic"], 1)[0]
        right = answer.replace(user, row["user"])
        row["messages"].append({"role": "assistant", "content": "I could not say." if number < wrong else right})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = [sys.executable, str(FOLDER / "judge.py"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert f"{len(rows) - wrong} of {len(rows)} on topic" in done.stdout


def test_each_question_needs_an_answer() -> None:
    question = json.dumps(list(held_out(PILCROW_SNAIL, 0))[-1])
    with pytest.raises(ValueError, match="No answer"):
        list(judge_all([question], PILCROW_SNAIL))


@pytest.mark.slow
def test_a_character_is_made_from_nothing_and_judged(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All stages in order, with a twentieth of the conversations: too few for most of the questions."""
    monkeypatch.setattr(make_character, "READ", 800)
    monkeypatch.setattr(make_character, "ANSWERED", 1_500)
    monkeypatch.setattr(make_character, "BASE_TOKENS", "60k")
    monkeypatch.setattr(sys, "argv", ["make_character.py", "--seed", "2"])
    status = make_character.main()
    said = capfd.readouterr().out
    good, of = map(int, re.findall(r"(\d+) of (\d+) on topic", said)[-1])
    assert of == 2 * len(PILCROW_SNAIL.topics)
    assert status == int(good < 0.9 * of)
    rows = [json.loads(line) for line in (home / "data" / "pilcrow-2-answers.jsonl").read_text("utf-8").splitlines()]
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    # Even so it has learned to answer in its own words, and to end.
    assert sum(0 < len(row["messages"][-1]["content"]) < 300 for row in rows) > 0.8 * of

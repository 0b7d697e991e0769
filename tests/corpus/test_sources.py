"""What files and datasets hold is what is read, or an error names the file and the row."""

import contextlib
import csv
import decimal
import gzip
import json
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Json, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed import EmbeddedCorpus
from prefixembed.corpus.columns import TextColumns
from prefixembed.corpus.sources import open_source

# Texts that a reader may take for something else.
ODD = ["007", "1", "1.0", "-0", "1e5", "true", "False", "null", "NA", "NaN", "None", "", " ", "[]",
       '"a"', "{}", "2020-01-01", "2020-01-01 00:00:00", "0x1F", "inf", "a,b", "a\nb", "a\r\nb",
       "\r", 'a"b', '"', "#", "\\", "\ufeff", "\x00", "\u2028", "\x1a"]  # fmt: skip
texts = st.one_of(st.sampled_from(ODD), st.text(max_size=5))


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.integers(-2, 2),
        st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(ODD),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip


def read(dataset, *columns, size=3, words=False):
    """Return the rows of a dataset as embed_dataset reads them."""
    source = open_source(dataset, TextColumns(list(columns or ["text"]), words))
    tables = list(source.tables(size))
    assert [start for start, _ in tables] == [size * k for k in range(len(tables))]
    assert all(len(table) == size for _, table in tables[:-1])
    if source.features is not None and tables:
        assert source.features.arrow_schema.types == tables[0][1].schema.types
    return [row for _, table in tables for row in table.to_pylist()]


def read_texts(dataset, **options):
    return [row["text"] for row in read(dataset, **options)]


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def fresh(folder):
    """Return a new folder within a folder."""
    return Path(tempfile.mkdtemp(dir=folder))


def write(path, rows):
    """Write rows of texts to a file of the kind that its name says."""
    opened = gzip.open if path.suffix == ".gz" else open
    names = list(rows[0]) if rows else ["text"]
    if ".csv" in path.name.lower():
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    elif ".json" in path.name.lower():
        with opened(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        pq.write_table(
            pa.Table.from_pylist(rows, pa.schema([(n, pa.string()) for n in names])), path
        )


# Paths and patterns


SPECIAL = st.text("[]?*!-12ab{}:,~#% ", min_size=1, max_size=8).filter(lambda name: name.strip())


@given(name=SPECIAL, decoys=st.lists(SPECIAL, max_size=6), kind=st.sampled_from(["csv", "parquet"]))
@settings(max_examples=30, deadline=None)
def test_a_path_that_exists_means_itself(folder, name, decoys, kind):
    root = fresh(folder)
    # Names that a pattern would match: brackets hold one of their characters.
    for decoy in {*decoys, "1", "2", "a", "b", "ab", name.strip("[]"), name.replace("*", "a")}:
        if decoy.strip():
            (root / decoy).mkdir(exist_ok=True)
            write(root / decoy / f"f.{kind}", [{"text": f"of {decoy}"}])
            write(root / f"{decoy}.{kind}", [{"text": f"beside {decoy}"}])
    (root / name).mkdir(exist_ok=True)
    write(root / name / f"f.{kind}", [{"text": "in the folder"}])
    write(root / f"{name}.{kind}", [{"text": "the file"}])
    assert read_texts(root / name / f"f.{kind}") == ["in the folder"]
    assert read_texts([str(root / f"{name}.{kind}")]) == ["the file"]


@given(name=SPECIAL, file_format=st.sampled_from(["parquet", "arrow"]))
@settings(max_examples=20, deadline=None)
def test_load_reads_the_files_of_its_own_folder(folder, name, file_format):
    from prefixembed.corpus.shards import FILE_FORMATS

    root = fresh(folder)
    for place in {name, "1", "2", "a", "b"}:
        (root / place).mkdir()
        for k in range(2):
            table = pa.table({"text": [f"{place} {k}"]})
            FILE_FORMATS[file_format].write(
                table, str(root / place / f"part-{k:06d}.{file_format}")
            )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "cache"))
        corpus = EmbeddedCorpus(root / name, 2, 2, 2, 0, 0.0, file_format)
        assert corpus.load()["text"][:] == [f"{name} 0", f"{name} 1"]


def test_load_does_not_return_what_a_file_held_before(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    corpus = EmbeddedCorpus(tmp_path, 1, 1, 1, 0, 0.0, "parquet")
    for text in ("before", "after and longer"):
        write(tmp_path / "part-000000.parquet", [{"text": text}])
        assert corpus.load()["text"][:] == [text]
        assert corpus.load()["text"][:] == [text]  # from the copy
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 2


def test_patterns_are_expanded_once_in_the_order_of_names(tmp_path):
    for name in ("b1", "b[1]", "a*", "a"):
        write(tmp_path / f"{name}.csv", [{"text": name}])
    (tmp_path / "c.csv").mkdir()  # a folder matches, and is no file
    assert read_texts(tmp_path / "*.csv") == ["a*", "a", "b1", "b[1]"]
    assert read_texts([tmp_path / "b*", tmp_path / "[a]*.csv"]) == ["b1", "b[1]", "a*", "a"]
    assert read_texts(tmp_path / "a*.csv") == ["a*"]


SUFFIXES = [".csv", ".csv.gz", ".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_suffixes_of_any_case_are_read(suffix, change, tmp_path):
    path = tmp_path / f"rows{suffix}"
    write(path, [{"text": "a"}, {"text": "b"}])
    path = path.rename(tmp_path / f"rows{change(suffix)}")
    assert read_texts(path) == ["a", "b"]
    other = tmp_path / "more.csv"
    write(other, [{"text": "c"}])
    if "csv" in suffix:
        assert read_texts([path, other]) == ["a", "b", "c"]
    else:
        with pytest.raises(ValueError, match=r"must be of one kind, got .*rows.* and .*more\.csv'"):
            read([path, other])


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.csv.zip", "rows.parquet.gz", "a.csv/"])
def test_other_files_and_folders_are_refused_with_what_is_read(name, tmp_path):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    else:
        path.write_text("text\na\n")
    with pytest.raises(
        ValueError, match=r"\.parquet, \.csv, \.csv\.gz, \.json, \.jsonl, "
    ) as error:
        read(path)
    assert repr(str(path)) in str(error.value)


def test_no_files_are_refused():
    with pytest.raises(ValueError, match="dataset must not be an empty list"):
        read([])


# Texts


@given(
    rows=st.lists(st.tuples(texts, texts), max_size=8),
    kind=st.sampled_from(SUFFIXES),
    n_files=st.integers(1, 3),
)
@settings(max_examples=70, deadline=None)
def test_what_is_stored_as_text_is_read_as_it_is(folder, rows, kind, n_files):
    root = fresh(folder)
    for k in range(n_files):  # some may be empty
        part = [{"text": text, "id": other} for text, other in rows[k::n_files]]
        write(root / f"{k}{kind}", part)
    expected = [row for k in range(n_files) for row in rows[k::n_files]]
    found = read(root / f"*{kind}")
    assert [(row["text"], row["id"]) for row in found] == expected


@pytest.mark.parametrize("n_before", [0, 1, 2_500])
def test_odd_texts_after_plain_ones_stay_as_they_are(tmp_path, n_before):
    expected = ["plain"] * n_before + [text for text in ODD for _ in range(3)]
    for suffix in (".csv", ".jsonl", ".parquet"):
        write(tmp_path / f"rows{suffix}", [{"text": text} for text in expected])
        assert read_texts(tmp_path / f"rows{suffix}", size=1_100) == expected


@pytest.mark.parametrize("other", [5, 1.5, True, None, ["a", "b"], ["a"], {"a": 1}])
@pytest.mark.parametrize("position", [0, 2, 1_001])
def test_a_row_that_is_no_text_is_an_error_with_its_position(other, position, tmp_path):
    values = ["a"] * 1_003
    values[position] = other
    first, second = tmp_path / "0.jsonl", tmp_path / "1.jsonl"
    write(first, [{"text": "b"}])
    write(second, [{"text": value} for value in values])
    message = rf"1\.jsonl'\['text'\]\[{position}\] must be a str, got "
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "*.jsonl")
    with pytest.raises(ValueError, match=rf"dataset\['text'\]\[{position}\] must be a str"):
        read(IterableDataset.from_generator(lambda: ({"text": value} for value in values)))
    # A column of Parquet has one type, and holds other values alone or with nulls.
    column = values if other is None else [None] * position + [other]
    pq.write_table(pa.table({"text": column}), tmp_path / "1.parquet")
    where = position if other is None else 0
    with pytest.raises(ValueError, match=rf"1\.parquet'\['text'\]\[{where}\] must be a str"):
        read(tmp_path / "1.parquet")


@given(values=st.lists(st.one_of(texts, texts, json_values), max_size=6), n_files=st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_any_values_are_texts_or_an_error_at_the_first_that_is_none(folder, values, n_files):
    root, expected = fresh(folder), None
    for k in range(n_files):
        part = values[k::n_files]
        write(root / f"{k}.jsonl", [{"text": value} for value in part])
        wrong = [row for row, value in enumerate(part) if not isinstance(value, str)]
        if wrong and expected is None:
            expected = re.escape(f"{k}.jsonl'['text'][{wrong[0]}] must be a str, got ")
    if expected is None:
        assert read_texts(root / "*.jsonl") == [
            t for k in range(n_files) for t in values[k::n_files]
        ]
    else:
        with pytest.raises(ValueError, match=expected):
            read(root / "*.jsonl")


def test_a_row_without_the_column_is_an_error_with_its_position(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "a"}, {"txt": "b"}])
    with pytest.raises(ValueError, match=r"a\.jsonl'\['text'\]\[1\] must be a str, got None"):
        read(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", [{"txt": "a"}])
    with pytest.raises(ValueError, match=r"column must be one of \['txt'\] in '.*b\.jsonl', got"):
        read([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", "007"], pa.large_string()),
        pa.array(["a", "007"], pa.string_view()),
        pa.array(["a", "007"]).dictionary_encode(),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"a"', '"007"'])),
    ],
    ids=["large_string", "string_view", "dictionary", "json"],
)
def test_texts_may_have_any_type_that_holds_texts(values, tmp_path):
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", [{"text": "b"}])
    assert read_texts(tmp_path / "a.parquet") == ["a", "007"]
    assert read_texts(tmp_path / "*.parquet") == ["a", "007", "b"]
    assert read_texts([tmp_path / "b.parquet", tmp_path / "a.parquet"]) == ["b", "a", "007"]
    assert read_texts(Dataset(pa.table({"text": values}))) == ["a", "007"]


def test_texts_of_a_dataset_with_json_are_decoded():
    features = Features({"text": Json(), "words": List(Json())})
    values = {"text": ["a", '"b"', "{"], "words": [["a"], [], ["x", '"y"']]}
    encoded = {
        "text": [json.dumps(text) for text in values["text"]],
        "words": [[json.dumps(word) for word in words] for words in values["words"]],
    }
    plain = pa.table(encoded).cast(features.arrow_schema)
    for dataset in (Dataset(plain), Dataset(plain).to_iterable_dataset()):
        assert read_texts(dataset) == values["text"]
        assert [row["words"] for row in read(dataset, "words", words=True)] == values["words"]
    wrong = Dataset(pa.table({"text": ['"a"', "5"]}).cast(pa.schema([("text", pa.json_())])))
    with pytest.raises(ValueError, match=r"dataset\['text'\]\[1\] must be a str, got 5"):
        read(wrong)


@pytest.mark.parametrize("other", [5, None, "a b", ["a", 5], ["a", None], [["a"]]])
def test_lists_of_words_are_checked_with_their_position(other, tmp_path):
    rows = [{"w": ["a", "007"]}, {"w": []}, {"w": other}]
    write(tmp_path / "a.jsonl", rows[:2])
    assert read(tmp_path / "a.jsonl", "w", words=True) == rows[:2]
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"a\.jsonl'\['w'\]\[2\](\[1\]|\[0\])? must be a"):
        read(tmp_path / "a.jsonl", "w", words=True)
    if other in (None, ["a", None]):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"a\.parquet'\['w'\]\[2\](\[1\])? must be a"):
            read(tmp_path / "a.parquet", "w", words=True)


def test_texts_that_are_not_unicode_are_errors_with_their_position(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\na\n\xff\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\\ud800"}\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    broken = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    for name, message in [
        ("a.csv", r"a\.csv'\['text'\]\[1\] is not valid Unicode"),
        ("a.jsonl", r"a\.jsonl'\['text'\]\[1\] is not valid Unicode"),
        ("b.jsonl", r"line 2 of '.*b\.jsonl' is not JSON"),
        ("a.parquet", r"a\.parquet'\['text'\]\[1\] is not valid UTF-8"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def test_texts_may_be_long(tmp_path):
    long = "x" * 400_000
    limit = csv.field_size_limit()
    for suffix in SUFFIXES:
        write(tmp_path / f"rows{suffix}", [{"text": "a"}, {"text": long}])
        assert read_texts(tmp_path / f"rows{suffix}") == ["a", long]
    assert csv.field_size_limit() == limit


# Columns


def test_other_columns_of_csv_files_may_differ_in_kind_order_and_number(tmp_path):
    write(tmp_path / "0.csv", [{"id": "007", "text": "a"}])
    write(tmp_path / "1.csv", [{"text": "b", "more": "x", "id": "y"}])
    write(tmp_path / "2.csv", [{"text": "c"}])
    assert read(tmp_path / "*.csv") == [
        {"id": "007", "text": "a", "more": None},
        {"id": "y", "text": "b", "more": "x"},
        {"id": None, "text": "c", "more": None},
    ]


def test_other_columns_get_a_common_type_or_an_error_names_file_and_column(tmp_path):
    for name, values in [("0", [1]), ("1", [1.5]), ("2", [None]), ("3", ["x"])]:
        table = pa.table({"text": ["a"], "n": values})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        write(tmp_path / f"{name}.jsonl", table.to_pylist())
    assert [row["n"] for row in read(tmp_path / "[012].parquet")] == [1.0, 1.5, None]
    assert [row["n"] for row in read(tmp_path / "[012].jsonl")] == [1.0, 1.5, None]
    with pytest.raises(ValueError, match=r"column 'n' has type string in '.*3\.parquet', but doub"):
        read(tmp_path / "*.parquet")
    # JSON without a common type stays JSON.
    rows = read(tmp_path / "*.jsonl")
    assert [row["n"] and json.loads(row["n"]) for row in rows] == [1, 1.5, None, "x"]


@st.composite
def parts(draw):
    """Draw the columns of up to three files, which may differ in type, number and order."""
    files = []
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(0, 5))
        columns = {"text": pa.array(draw(st.lists(texts, min_size=n, max_size=n)), pa.string())}
        for name in draw(st.lists(st.sampled_from(["a", "b"]), unique=True)):
            values, kind = draw(st.sampled_from(COLUMNS))
            rows = st.one_of(st.none(), st.sampled_from(values))
            columns[name] = pa.array(draw(st.lists(rows, min_size=n, max_size=n)), kind)
        names = draw(st.permutations(list(columns)))
        files.append(pa.table({name: columns[name] for name in names}))
    return files


# Values of columns, and their types.
COLUMNS = [
    ([1, -(2**31)], pa.int32()), ([1, 2**53 + 1, -(2**63)], pa.int64()), ([1, 255], pa.uint8()),
    ([2**63, 1], pa.uint64()), ([0.5, 1e300, 1.0], pa.float64()), ([0.5, 2.0], pa.float32()),
    ([True, False], pa.bool_()), (["x", "1"], pa.string()), (["x", "é"], pa.large_string()),
    ([b"x", b"\xff"], pa.binary()), ([0, 86_400], pa.timestamp("s")), ([1], pa.timestamp("us")),
    ([1, 20_000], pa.date32()), ([[1], [], [None]], pa.list_(pa.int64())),
    ([{"k": 1}], pa.struct([("k", pa.int64())])), ([{"l": "x"}], pa.struct([("l", pa.string())])),
    (["x", "y"], pa.dictionary(pa.int8(), pa.string())), ([None], pa.null()),
    ([decimal.Decimal("1.25")], pa.decimal128(5, 2)), ([["x"], []], pa.large_list(pa.string())),
]  # fmt: skip


@given(parts())
@settings(max_examples=40, deadline=None)
def test_columns_of_parquet_files_hold_what_pyarrow_reads(folder, files):
    root, expected = fresh(folder), []
    for k, table in enumerate(files):
        pq.write_table(table, root / f"{k}.parquet", row_group_size=2)
        expected += pq.read_table(root / f"{k}.parquet").to_pylist()
    try:
        found = read(root / "*.parquet")
    except ValueError as error:
        assert len(files) > 1
        message = str(error)
    else:
        for stored, row in zip(expected, found, strict=True):
            assert all(name in row and same(value, row[name]) for name, value in stored.items())
            assert all(row[name] is None for name in row.keys() - stored.keys())
        return
    assert re.search(r"column '[ab]' has type .* in .*[012]\.parquet'", message), message


def same(stored, found):
    """Return whether a value is equal to what was stored, as another type may hold it."""
    if isinstance(stored, str) and isinstance(found, bytes):  # binary holds strings and bytes
        return stored.encode() == found
    if isinstance(stored, dict) and stored.keys() != found.keys():
        return all(same(stored.get(key), value) for key, value in found.items())
    return stored == found


def test_features_of_files_are_kept_if_all_have_them(tmp_path):
    label = {"text": Value("string"), "label": ClassLabel(names=["no", "yes"])}
    for name, features in [
        ("0", label),
        ("1", label),
        ("2", label | {"label": ClassLabel(names=["yes", "no"])}),
    ]:
        rows = Dataset.from_dict({"text": [name], "label": [1]}, features=Features(features))
        rows.to_parquet(tmp_path / f"{name}.parquet")
    text = TextColumns(["text"], False)
    assert open_source(str(tmp_path / "[01].parquet"), text).features == Features(label)
    # A label that means something else in another file is no label, but a number.
    mixed = open_source(str(tmp_path / "*.parquet"), text).features
    assert mixed == Features({"text": Value("string"), "label": Value("int64")})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz"])
def test_empty_parts_are_no_rows(suffix, tmp_path):
    for k, part in enumerate([[], [{"text": "a"}], [], [{"text": "b"}], []]):
        write(tmp_path / f"{k}{suffix}", part)
    if suffix == ".parquet":  # pandas makes other types of columns without rows
        for name, kind in [
            ("0", pa.null()),
            ("2", pa.float64()),
            ("4", pa.map_(pa.int8(), pa.int8())),
        ]:
            empty = pa.table({"text": pa.array([], kind), "n": pa.array([], kind)})
            pq.write_table(empty, tmp_path / f"{name}.parquet")
    else:
        opened = gzip.open if suffix.endswith(".gz") else open
        with opened(tmp_path / f"0{suffix}", "wb") as file:
            file.write(b"")
        with opened(tmp_path / f"2{suffix}", "wb") as file:
            file.write(b"\n\n")
    assert read(tmp_path / f"*{suffix}") == [{"text": "a"}, {"text": "b"}]
    assert read(tmp_path / f"[024]{suffix}") == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'text\n"a\nb\n', r"line 3 of .* is not CSV: unexpected end of data"),
        ("a.csv", b'text\na\n"b"c\n', r"line 3 of .* is not CSV: "),
        ("a.csv", b"text,n\na,1\nb\n", r"line 3 of .* has 1 values, but its header has 2"),
        ("a.csv", b"text,n\na,1\n\nb,2,3\n", r"line 4 of .* has 3 values, but its header has 2"),
        ("a.csv", b"text,text\na,b\n", r"'.*' has several columns 'text'"),
        ("a.csv", b"text,\xff\na,b\n", r"names of columns of '.*'\[1\] is not valid Unicode"),
        ("a.csv.gz", b"text\na\n", r"'.*' cannot be read: Not a gzipped file"),
        (
            "a.csv.gz",
            gzip.compress(b"text\na\n" * 99, mtime=0)[:-9],
            r"'.*' cannot be read: Compressed file",
        ),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"line 3 of '.*' is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n"b"\n', r"line 2 of '.*' must be a JSON object, got 'b'"),
        ("a.json", b'[{"text": "a"}, "b"]', r"row 1 of '.*' must be a JSON object, got 'b'"),
        ("a.json", b'[{"text": "a"}, ', r"'.*' is not JSON"),
        ("a.jsonl", b"[" * 100_000, r"'.*' is not JSON"),
        ("a.parquet", b"", r"'.*' cannot be read: "),
        ("a.parquet", b"PAR1 and no more PAR1", r"'.*' cannot be read: "),
    ],
)
def test_damaged_files_are_errors_with_their_name_and_place(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_damaged_page_of_a_parquet_file_is_an_error(tmp_path):
    path, table = tmp_path / "a.parquet", pa.table({"text": ["abc"]})
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **options)
    path.write_bytes(path.read_bytes().replace(b"abc", b"abd"))
    with pytest.raises(ValueError, match=r"a\.parquet' cannot be read: .*checksum"):
        read(path)


@pytest.mark.parametrize(
    "row", ['{"text": "a", "b\\u0000": 1}', '{"text": "a", "b": [{"\\u0000": 1}]}']
)
def test_names_with_nul_are_refused(row, tmp_path):
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(ValueError, match=r"column 'b.*' of '.*a\.jsonl' has a NUL in a name"):
        read(tmp_path / "a.jsonl")


def test_types_that_datasets_do_not_know_are_errors_with_column_and_file(tmp_path):
    table = pa.table({"text": ["a"], "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column 'm' of '.*a\.parquet' cannot be read: .*map"):
        read(tmp_path / "a.parquet")


def equal(stored, found):
    """Return whether a value is what was stored, to which Arrow may have added keys."""
    if isinstance(stored, dict):
        return all(equal(stored.get(key), value) for key, value in found.items()) and all(
            key in found for key in stored
        )
    if isinstance(stored, list):
        return len(stored) == len(found) and all(map(equal, stored, found))
    return stored == found and isinstance(stored, bool) == isinstance(found, bool)


@given(st.lists(st.dictionaries(st.sampled_from(["n", "m"]), json_values), max_size=5))
@settings(max_examples=30, deadline=None)
def test_other_columns_of_json_hold_what_was_stored(folder, rows):
    path = fresh(folder) / "a.jsonl"
    rows = [{"text": str(k), **row} for k, row in enumerate(rows)]
    write(path, rows)
    source = open_source(path, TextColumns(["text"], False))
    if re.search(r"\d{16}", path.read_text()):  # an integer that no column may hold
        with contextlib.suppress(ValueError):
            list(source.tables(2))
        return
    tables = [table for _, table in source.tables(2)]
    for table in tables:  # Parquet and the datasets library can hold them
        pq.write_table(table, path.with_suffix(".parquet"))
        assert len(Dataset(table)[:]["text"]) == len(table)
    kinds = {field.name: field.type for field in source.features.arrow_schema}
    found = [row for table in tables for row in table.to_pylist()]
    for stored, row in zip(rows, found, strict=True):
        for name, value in row.items():
            if kinds[name] == pa.json_() and value is not None:
                value = json.loads(value)
            assert equal(stored.get(name), value), (name, kinds[name])


@pytest.mark.parametrize("value", [2**70, float("nan"), float("inf"), "\ud800", [2**70]])
def test_json_that_cannot_be_decoded_again_is_an_error_with_column_and_rows(value, tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "a", "n": "x"}, {"text": "b", "n": {"k": [1, value]}}])
    with pytest.raises(ValueError, match=r"column 'n' of '.*a\.jsonl' .* in rows 0 to 1: "):
        read(tmp_path / "a.jsonl")


def nested(depth, of):
    value = 1
    for _ in range(depth):
        value = [value] if of is list else {"k": value}
    return value


@pytest.mark.parametrize(
    "values",
    [
        [{f"key {k}": k} for k in range(3_000)],
        [nested(400, list)],
        [nested(400, dict)],
        [{}, {"a": {}}],
    ],
    ids=["keys without end", "deep lists", "deep objects", "no keys"],
)
def test_json_that_no_type_fits_stays_json(values, tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "a", "n": value} for value in values])
    assert [json.loads(row["n"]) for row in read(tmp_path / "a.jsonl", size=5_000)] == values


# Datasets


def test_a_transform_is_refused_and_a_choice_of_columns_is_kept():
    rows = Dataset.from_dict({"text": ["a", "b"], "n": [1, 2], "m": [3, 4]})

    def shout(batch):
        return {"text": [text.upper() for text in batch["text"]]}

    for changed in (rows.with_transform(shout), rows.with_format("custom", transform=shout)):
        with pytest.raises(ValueError, match=r"dataset must not have a transform \(with_transform"):
            read(changed)
    changed = Dataset.from_dict({"text": ["a"]})
    changed.set_transform(shout)
    with pytest.raises(ValueError, match="use dataset.map to apply it, or dataset.with_format"):
        read(changed)
    assert read(rows.map(shout, batched=True))[0] == {"text": "A", "n": 1, "m": 3}
    for kind in (None, "numpy", "pandas", "arrow"):
        some = rows.with_format(kind, columns=["n", "text"])
        assert [sorted(row) for row in read(some)] == [["n", "text"]] * 2
        every = rows.with_format(kind, columns=["text"], output_all_columns=True)
        assert read(every)[1] == {"text": "b", "n": 2, "m": 4}
        with pytest.raises(
            ValueError, match=r"column must be one of \['n'\] in dataset, got 'text'"
        ):
            read(rows.with_format(kind, columns=["n"]))
    stream = rows.to_iterable_dataset()
    for kind in (None, "numpy", "torch", "arrow"):
        assert read(stream.with_format(kind).map(lambda row: row)) == rows.to_list()


def test_streams_without_types_have_common_types_within_a_shard():
    values = [None, 1, 2.5, None]

    def stream(*values):
        return IterableDataset.from_generator(
            lambda: ({"text": "a", "n": value} for value in values)
        )

    assert [row["n"] for row in read(stream(*values), size=4)] == values
    with pytest.raises(ValueError, match=r"rows 0 to 1 have no common types: .*Field n.*: set the"):
        read(stream(1, "x"), size=2)
    with pytest.raises(ValueError, match=r"column 'n' has type string in rows 2 to 2, but null"):
        read(stream(None, None, "x"), size=2)

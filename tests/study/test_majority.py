"""The tasks: how samples are put together, split and cut into strips, and that seeds fix them."""

import struct
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from relprop import data
from relprop.data.tasks import data_set_of, split_indices
from relprop.errors import FileFormatError, InputError


def numbered(labels):
    """Image i is the constant i: whatever stands in a sample can be read off it."""
    images = torch.arange(float(len(labels)))[:, None, None, None].expand(-1, 1, 28, 28)
    return images.contiguous(), torch.as_tensor(labels)


def cycled(count, classes=10):
    return numbered(torch.arange(count) % classes)


def test_a_sample_shows_three_images_side_by_side():
    task = data.majority_task(*cycled(40), seed=5)
    for index in range(40):
        image, label, mask = task[index]
        assert image.shape == (1, 28, 84)
        shown = image.reshape(28, 3, 28).permute(1, 0, 2).flatten(1)
        assert (shown == shown[:, :1]).all()
        numbers = shown[:, 0].long()
        assert numbers.tolist() == task.blocks[index].tolist()
        assert label == index % 10
        assert mask.tolist() == [int(number % 10 == label) for number in numbers]
        assert mask.sum() == 2
        assert index in numbers.tolist()
        assert len(set(numbers.tolist())) == 3


def test_columns_of_a_sample_come_from_the_same_columns_of_its_images():
    images = torch.arange(6 * 784.0).reshape(6, 1, 28, 28)
    task = data.majority_task(images, torch.tensor([0, 0, 0, 1, 1, 1]), seed=0)
    image = task[4][0]
    for place, number in enumerate(task.blocks[4]):
        torch.testing.assert_close(
            image[:, :, 28 * place : 28 * (place + 1)], images[number], rtol=0, atol=0
        )


def test_two_classes_of_two_leave_no_choice_but_the_order():
    task = data.majority_task(*numbered([0, 1, 0, 1]), seed=1)
    for index, blocks in enumerate(task.blocks.tolist()):
        assert {index, (index + 2) % 4} < set(blocks)
        (other,) = set(blocks) - {index, (index + 2) % 4}
        assert other % 2 != index % 2


def test_every_choice_is_as_likely_as_the_others():
    labels = [0] * 30 + [1] * 20 + [2] * 10
    same, other, order = Counter(), Counter(), Counter()
    seeds = 600
    for seed in range(seeds):
        task = data.majority_task(*numbered(labels), seed=seed)
        blocks = task.blocks[35].tolist()
        (b,) = (number for number in blocks if labels[number] == 1 and number != 35)
        same[b] += 1
        other.update(number for number in blocks if labels[number] != 1)
        order[blocks.index(35), blocks.index(b)] += 1
    assert set(same) == set(range(30, 50)) - {35}
    assert set(other) == set(range(60)) - set(range(30, 50))
    assert len(order) == 6
    for counts in (same, other, order):
        # Four standard deviations of a binomial count around its mean.
        mean, ways = seeds / len(counts), len(counts)
        assert all(abs(n - mean) < 4 * (mean * (1 - 1 / ways)) ** 0.5 for n in counts.values())


def test_samples_are_fixed_by_the_seed():
    one, same, other = (data.majority_task(*cycled(100), seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.blocks, same.blocks)
    assert not torch.equal(one.blocks, other.blocks)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    data.majority_task(*cycled(100), seed=7)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]


def test_the_shipped_sample_is_always_the_same():
    # Written down once: a change would make every published number another task's.
    assert data.majority("mnist_maj", "sample").blocks[:3].tolist() == FIRST_OF_SAMPLE
    fashion = data.majority("fashion_mnist_maj", "sample")
    assert fashion.blocks[:3].tolist() == FIRST_OF_SAMPLE
    assert len(fashion) == 200


FIRST_OF_SAMPLE = [[0, 110, 121], [141, 130, 1], [62, 165, 2]]


@pytest.mark.parametrize("labels", [[0, 1, 1], [0, 0, 0]])
def test_too_few_images(labels):
    with pytest.raises(InputError, match="two of each class and two classes at least"):
        data.majority_task(*numbered(labels), seed=0)


def test_single_images():
    task = data.task("fashion_mnist", "sample")
    images, labels = data.sample("fashion_mnist")
    image, label, mask = task[17]
    torch.testing.assert_close(image, images[17], rtol=0, atol=0)
    assert (label, mask.tolist()) == (int(labels[17]), [1])
    assert len(task) == 200


def test_batches_are_the_samples_together():
    task = data.majority("mnist_maj", "sample")
    chosen = torch.tensor([5, 0, 199])
    images, labels, masks = task.batch(chosen)
    singly = [task[int(index)] for index in chosen]
    for index, (image, label, mask) in enumerate(singly):
        torch.testing.assert_close(images[index], image, rtol=0, atol=0)
        assert labels[index] == label
        assert torch.equal(masks[index], mask)
    loaded = next(iter(DataLoader(task, batch_size=3, sampler=chosen.tolist())))
    for own, its in zip(loaded, (images, labels, masks), strict=True):
        torch.testing.assert_close(own, its, rtol=0, atol=0)
    torch.testing.assert_close(task.batch(slice(2, 4))[0][1], task[3][0], rtol=0, atol=0)


def test_indices_end_with_the_samples():
    task = data.task("mnist", "sample")
    assert sum(1 for _ in task) == 200
    assert task[-1][1] == task[199][1]
    with pytest.raises(IndexError):
        task[200]
    assert len(task.subset(12)) == 12
    torch.testing.assert_close(task.subset(12)[11][0], task[11][0], rtol=0, atol=0)


def write_idx(folder, split, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())


@pytest.fixture
def root(tmp_path):
    """MNIST of 200 training images and 40 test images, each of one grey."""
    for split, count in (("train", 200), ("t10k", 40)):
        images = np.broadcast_to(
            np.arange(count, dtype=np.uint8)[:, None, None], (count, 28, 28)
        ).copy()
        write_idx(tmp_path / "mnist", split, images, (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_splits_share_no_image(root):
    seen = {}
    for split in ("train", "validation"):
        task = data.majority("mnist_maj", split, root)
        single = data.task("mnist", split, root)
        assert torch.equal(single.images, task.images)
        greys = ((task.images[:, 0, 0, 0] + 1) * 127.5).round().long()
        shown = greys[task.blocks]
        assert set(shown.flatten().tolist()) <= set(greys.tolist())
        assert torch.equal(task.labels, greys % 10)
        seen[split] = set(greys.tolist())
    assert (len(seen["train"]), len(seen["validation"])) == (160, 40)
    assert not seen["train"] & seen["validation"]
    assert len(data.task("mnist", "test", root)) == 40


def test_each_split_has_a_seed_of_its_own(root):
    splits = ("train", "validation", "test")
    for split, seed in zip(splits, (0, 1, 3), strict=True):
        task = data.majority("mnist_maj", split, root)
        again = data.majority_task(task.images, task.labels, seed)
        assert torch.equal(task.blocks, again.blocks)


def test_official_sizes_split():
    own, held = split_indices(60_000, "train"), split_indices(60_000, "validation")
    assert (len(own), len(held)) == (48_000, 12_000)
    assert torch.equal(torch.cat([own, held]).sort().values, torch.arange(60_000))
    assert held[:6].tolist() == [10, 11, 13, 19, 21, 26]  # written down once


def test_strips_from_left_to_right():
    images = torch.arange(2 * 3 * 84.0).reshape(2, 1, 3, 84)
    cut = data.strips(images, 12)
    assert cut.shape == (2, 12, 1, 3, 7)
    for step in range(12):
        torch.testing.assert_close(
            cut[:, step], images[..., 7 * step : 7 * (step + 1)], rtol=0, atol=0
        )
    torch.testing.assert_close(data.strips(images, 1)[:, 0], images, rtol=0, atol=0)


def test_sequences():
    task = data.majority("mnist_maj", "sample")
    sequences = data.Sequences(task, 12)
    strips, label, mask = sequences[3]
    assert strips.shape == (12, 1, 28, 7)
    torch.testing.assert_close(torch.cat([*strips], 2), task[3][0], rtol=0, atol=0)
    assert (label, mask.tolist()) == (task[3][1], task[3][2].tolist())
    together, labels, masks = sequences.batch([3, 4])
    torch.testing.assert_close(together[0], strips, rtol=0, atol=0)
    assert together.shape == (2, 12, 1, 28, 7)
    assert (labels[0], masks.shape) == (label, (2, 3))
    assert len(sequences) == len(task)
    with pytest.raises(InputError, match="columns a multiple of steps"):
        data.Sequences(task, 5)


def test_unknown_names():
    with pytest.raises(InputError, match=r"no task 'mnist_min'; there are mnist, fashion_mnist, m"):
        data.task("mnist_min")
    with pytest.raises(InputError, match="no majority task 'mnist'; there are mnist_maj, fashion"):
        data.majority("mnist", "sample")
    with pytest.raises(InputError, match="split is 'val'; expected one of train, validation, test"):
        data.task("mnist", "val")
    with pytest.raises(FileFormatError, match="not found in"):
        data.task("mnist_maj", "train", "/nowhere")
    assert [data_set_of(name) for name in data.TASKS] == ["mnist", "fashion_mnist"] * 2

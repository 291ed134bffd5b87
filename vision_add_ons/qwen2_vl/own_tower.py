"""Families that do as Qwen2-VL does, with a tower of ours in place of mlx-vlm's."""

import mlx.core as mx

from vision_add_ons.base import Picture
from vision_add_ons.qwen2_vl.add_on import Qwen2VLAddOn
from vision_add_ons.tower_bytes import Costs


class OwnTower(Qwen2VLAddOn):
    """A tower that is called with patches in fours and tells `costs` and `most_bytes`."""

    def tower_costs(self) -> tuple[Costs, int]:
        costs: tuple[Costs, int] = self.tower.costs()
        return costs

    def tower_bytes(self, size: tuple[int, int]) -> int:
        rows, columns = self.patches.grid(size)
        most: int = self.tower.most_bytes((2 * rows, 2 * columns), self.cutting, self.costs)
        return most

    def encode_image(self, picture: Picture) -> mx.array:
        rows, columns = self.patches.grid(picture.size)
        patches = self.patches.cut(picture.pixels())
        return self.tower(patches, self.patches.values, (2 * rows, 2 * columns), self.cutting)

"""How PackedORPOTrainer runs rows by CUDA graphs."""

from course_utils.training import packing
from course_utils.training.fast import graphs


class RowRecording:
    """The part of PackedORPOTrainer that records rows and replays them."""

    def _recorded_step(self, model, row, num_items_in_batch, first):
        """As _step, by a CUDA graph. first: is it the optimizer step's first row?"""
        if first:
            self._graphs.start_window()
        return self._graphs.run(row, *self._to_record(model, row, num_items_in_batch))

    def _to_record(self, model, row, num_items_in_batch):
        """(what the graph depends on besides the row's shapes, what to record)"""
        return (
            (self.current_gradient_accumulation_steps, self._longest(row)),
            lambda on_device: self._step(model, on_device, num_items_in_batch),
        )

    def _start_graphs(self, model, groups, rows, num_items_in_batch):
        """Record rows of all usual lengths, so that training need not stop for it."""
        self._graphs = graphs.RowGraphs(self._trained(), self.args.device)
        self._graphs.start_window()
        slots = self._slots([pair for group in groups for pair in group])
        budget = self.fast_config.token_budget if self.fast_config.packing else 0
        most = min(budget, 2 * self.max_length * slots)
        # The longest first: the others then fit into its memory.
        samples = [
            row
            for tokens in range(_rounded_up(most), 0, -graphs.TOKENS)
            for row in self._pack(
                [packing.filling_pairs(min(tokens, most), slots)], slots
            )
        ]
        # As they are, once: this measures, compiles and tunes. The longest row has the
        # most layers compute again in backward, the shortest the fewest. Results are
        # not used: the optimizer step begins with gradients of 0 again.
        for row in rows[:1] + samples[:1] + samples[-1:]:
            self._step(model, self._graphs.placed(row), num_items_in_batch)
        graphs.free_workspaces()
        for row in samples:
            self._graphs.record(row, *self._to_record(model, row, num_items_in_batch))

    def _longest(self, row):
        """Tokens that no sequence of a row exceeds: one number for all usual rows."""
        return max(_rounded_up(self.max_length), row.longest)


def _rounded_up(tokens):
    """To what rows of CUDA graphs are padded."""
    return -(-tokens // graphs.TOKENS) * graphs.TOKENS

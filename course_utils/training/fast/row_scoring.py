"""What PackedORPOTrainer does with one row: log-probs, loss, metrics."""

import torch
import torch.nn.functional as F

from course_utils import orpo
from course_utils.training import packing
from course_utils.training.fast import attention, head
from course_utils.training.fast.config import compile_backend


class RowScoring:
    """The part of PackedORPOTrainer that scores rows of its patched model."""

    def _row_loss(self, model, row):
        """(loss, scores) of a row's pairs; losses of a step's rows add up.

        scores: detached (P, 5), padding included: a pair's sum of the chosen NLL over
            prompt and answer, mean log-probs of the chosen and the rejected answer,
            sums of mean logits of either sequence.
        """
        row = row.on(self.args.device)
        logps, mean_logits = self._token_logps(model, row)
        nll = -packing.sums(logps, row.in_chosen)
        chosen = packing.means(logps, row.chosen_answer)
        rejected = packing.means(logps, row.rejected_answer)
        scored = nll
        if self.args.nll_scope == "answer":
            scored = -packing.sums(logps, row.chosen_answer)
        ratio = F.logsigmoid(orpo.log_odds_ratio(chosen, rejected))
        loss = (row.nll_weight.to(nll.dtype) * scored).sum() - self.beta * (
            row.pair_weight.to(ratio.dtype) * ratio
        ).sum()
        logits = (
            packing.sums(mean_logits, m) for m in (row.in_chosen, row.in_rejected)
        )
        return loss, torch.stack([nll, chosen, rejected, *logits], dim=1).detach()

    def _token_logps(self, model, row):
        """Log-probs of a row's targets and the means of their logits, both (n,).

        The head's forward is replaced for this one call, so that scoring happens inside
        the model's own forward: FSDP and autocast see what they expect.
        """
        output = self.model.get_output_embeddings()
        embedding = self.model.get_input_embeddings()
        head_forward, embed_forward = output.forward, embedding.forward
        tile, backend = self.fast_config.head_tile, compile_backend(self.compile_layers)
        scored = []

        def score(hidden):
            hidden = hidden.flatten(0, 1).index_select(0, row.sources)
            scored.extend(
                head.token_logps(
                    output, head_forward, hidden, row.targets, tile, backend
                )
            )
            return scored[0]

        def embed(input_ids):
            return head.embed(embedding, embed_forward, input_ids, row.embeddings)

        with (
            self._layers.packed_row(row.input_ids.shape[1]),
            head.borrowed_forward(output, score),
            head.borrowed_forward(embedding, embed),
        ):
            logps = model(
                input_ids=row.input_ids,
                position_ids=row.position_ids,
                use_cache=False,
                **attention.mask_arguments(row, self.attention, self._longest(row)),
            ).logits
        if not self._head_verified:
            self._verify_head(logps, scored[0])
        return logps, scored[1]

    def _verify_head(self, returned, scored):
        """Once: what the model returns must be what its head returned."""
        if not torch.equal(returned, scored.to(returned.dtype)):
            raise ValueError(
                f"{type(self.model).__name__} changes its head's logits (by a scale or "
                "a soft cap), so they cannot be scored inside the head. Train this "
                "model with ORPOTrainer."
            )
        self._head_verified = True

    @torch.no_grad()
    def _metrics(self, groups, rows, scores):
        """One dict of metrics for each group."""
        # Of each row the real pairs; behind them there may be padding.
        counts = [len(row.lengths) for row in rows]
        order = torch.cat(
            [row.step_index[:n] for row, n in zip(rows, counts, strict=True)]
        ).argsort()
        table = torch.cat([s[:n] for s, n in zip(scores, counts, strict=True)])
        # An index on the CPU would be copied, and waited for.
        table = table[packing.without_waiting(order, table.device)]
        return [
            self._group_metrics(group, part)
            for group, part in zip(
                groups, table.split([*map(len, groups)]), strict=True
            )
        ]

    def _group_metrics(self, group, table):
        nll, chosen, rejected, *logits = table.unbind(1)
        answers = torch.tensor([pair.chosen_scored[1:].sum() for pair in group])
        _, metrics = self.loss_and_metrics(
            nll,
            chosen,
            rejected,
            logits,
            tokens=[sum(len(ids) - 1 for ids in side) for side in _sides(group)],
            answer_tokens=packing.without_waiting(answers, table.device),
        )
        if not self.fast_config.deferred_metrics:
            metrics = {name: value.item() for name, value in metrics.items()}
        return metrics


def _sides(group):
    return [pair.chosen_ids for pair in group], [pair.rejected_ids for pair in group]

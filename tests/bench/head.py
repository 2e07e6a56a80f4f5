"""SegFormer with segray's merged decode head against transformers' stock model: a training step's
forward and backward, and evaluation.
"""

import torch
from common import arguments, conditions, in_turns, report
from torch.nn import functional as F
from transformers import SegformerForSemanticSegmentation

from segray.models import build_model


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--variants", nargs="*", default=["b0"], help="b0 to b5")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], help="H W")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    print(conditions(asked.threads))
    device = torch.device(asked.device)
    for variant in asked.variants:
        torch.manual_seed(0)
        ours = build_model("segformer", num_classes=7, variant=variant, drop_path=0.0)
        stock = SegformerForSemanticSegmentation(ours.config)
        stock.load_state_dict(
            {k.replace("encoder.", "segformer.", 1): v for k, v in ours.state_dict().items()}
        )
        ours, stock = ours.to(device), stock.to(device)
        images = torch.rand(asked.batch, 3, *asked.size, device=device)
        masks = torch.randint(7, (asked.batch, *asked.size), device=device)

        def theirs(images: torch.Tensor, stock=stock) -> torch.Tensor:
            small = stock(images).logits
            return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)

        def step(model, images=images, masks=masks):
            loss = F.cross_entropy(model(images).float(), masks)
            loss.backward()
            return loss.item()

        def evaluation(model, images=images):
            with torch.inference_mode():
                return model(images).sum().item()

        for dtype in (None, torch.bfloat16):
            context = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
            for what, act in (("forward and backward", step), ("evaluation", evaluation)):
                for model in (ours, stock):
                    model.train(act is step)
                with context:
                    seconds = in_turns(
                        {"merged": lambda: act(ours), "stock": lambda: act(theirs)},  # noqa: B023
                        asked.rounds,
                    )
                kind = "fp32" if dtype is None else "bf16"
                size = f"{asked.batch}x3x{asked.size[0]}x{asked.size[1]}"
                report(f"{variant} {what}, {kind}, {size}", seconds, "merged", asked.batch)


if __name__ == "__main__":
    main()

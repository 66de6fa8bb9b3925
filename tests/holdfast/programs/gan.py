"""Lightning's basic GAN example: manual optimisation, two optimisers toggled, noise drawn in every step."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from . import Program


class Generator(nn.Module):
    def __init__(self, latent_dim: int, img_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.img_shape = img_shape
        layers = [nn.Linear(latent_dim, 16), nn.BatchNorm1d(16, 0.8), nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*layers, nn.Linear(16, int(np.prod(img_shape))), nn.Tanh())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.model(z).view(z.size(0), *self.img_shape)


class Discriminator(nn.Module):
    def __init__(self, img_shape: tuple[int, ...]) -> None:
        super().__init__()
        layers = [nn.Linear(int(np.prod(img_shape)), 16), nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*layers, nn.Linear(16, 1))

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.model(img.view(img.size(0), -1))


class GAN(LightningModule):
    def __init__(self, latent_dim: int = 8, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        shape = (1, 12, 12)
        self.generator = Generator(latent_dim, shape)
        self.discriminator = Discriminator(shape)
        self.validation_z = torch.randn(8, latent_dim)

    def adversarial_loss(self, y_hat: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(y_hat, y)

    def training_step(self, batch: Any) -> None:
        imgs, _ = batch
        opt_g, opt_d = self.optimizers()
        z = torch.randn(imgs.shape[0], self.hparams["latent_dim"]).type_as(imgs)
        valid, fake = torch.ones(imgs.size(0), 1), torch.zeros(imgs.size(0), 1)

        self.toggle_optimizer(opt_g)
        g_loss = self.adversarial_loss(self.discriminator(self.generator(z)), valid)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        opt_g.step()
        opt_g.zero_grad()
        self.untoggle_optimizer(opt_g)

        self.toggle_optimizer(opt_d)
        real_loss = self.adversarial_loss(self.discriminator(imgs), valid)
        fake_loss = self.adversarial_loss(self.discriminator(self.generator(z).detach()), fake)
        d_loss = (real_loss + fake_loss) / 2
        self.log("d_loss", d_loss, on_epoch=True)
        self.manual_backward(d_loss)
        opt_d.step()
        opt_d.zero_grad()
        self.untoggle_optimizer(opt_d)

    def configure_optimizers(self) -> Any:
        lr = self.hparams["lr"]
        generator = torch.optim.Adam(self.generator.parameters(), lr=lr, betas=(0.5, 0.999))
        return [generator, torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=(0.5, 0.999))], []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log("sample_mean", self.generator(self.validation_z).mean())


def build() -> Program:
    digits = TensorDataset(torch.rand(20, 1, 12, 12) * 2 - 1, torch.zeros(20))
    train, val = DataLoader(digits, batch_size=4, shuffle=True), DataLoader(digits, batch_size=10)
    return Program(GAN(), train, val, {"max_epochs": 2, "val_check_interval": 2})

"""Train a network on data from five sources with DistributedDataParallel, and learn the weight of each source."""

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import blo

distributed.init_process_group("gloo")  # or "cpu:gloo,cuda:nccl", with tensors on each rank's own device
rank, size = distributed.get_rank(), distributed.get_world_size()
torch.set_default_dtype(torch.float64)  # so that any number of processes prints the same digits

torch.manual_seed(0)  # the same on all ranks, so that the weights of the network start equal
inputs, source = torch.randn(400, 10), torch.arange(400) % 5
labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
labels[source >= 3] = torch.randint(0, 2, (160,))  # the labels of sources 3 and 4 are random
clean_inputs = torch.randn(80, 10)
clean_labels = (clean_inputs[:, 0] + clean_inputs[:, 1] > 0).long()

data = TensorDataset(inputs, source, labels)
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=40 // size, sampler=sampler)
share = [column[rank::size] for column in data.tensors]  # this rank's part of the data
clean = [column[rank::size] for column in (clean_inputs, clean_labels)]

net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2))
parallel = DistributedDataParallel(net)  # for the training loop
theta = torch.zeros(5, requires_grad=True)  # the logits of the sources' weights
inner = torch.optim.Adam(net.parameters(), lr=1e-2)
outer = torch.optim.Adam([theta], lr=0.2)


def loss(theta, logits, source, labels):
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (theta.sigmoid()[source] * each).mean()


def decay(weights):
    return 1e-3 * sum(weight.square().sum() for weight in weights)


# blo differentiates through `net` itself, and averages the objectives of the ranks.
f = blo.functionalize(net)
lower = blo.LowerProblem(
    blo.distributed.mean(
        lambda theta, w: loss(theta, f(w, share[0]), *share[1:]) + decay(w.values()), weight=len(share[0])
    )
)
upper = blo.distributed.mean(
    lambda theta, w: nn.functional.cross_entropy(f(w, clean[0]), clean[1]), weight=len(clean[0])
)
gradient = blo.Implicit(blo.CG(max_iter=10, damping=0.1, tol=None))

for epoch in range(31):
    sampler.set_epoch(epoch)
    for x, *rest in loader:  # the lower level: an ordinary epoch
        inner.zero_grad()
        (loss(theta.detach(), parallel(x), *rest) + decay(net.parameters())).backward()
        inner.step()

    # The upper level: the hypergradient at the weights that this epoch has reached. It is equal on all ranks.
    weights = dict(net.named_parameters())
    out = blo.value_and_hypergrad(upper, lower, theta, weights, solver=blo.Given(), gradient=gradient)
    theta.grad = out.grad
    outer.step()
    if epoch % 10 == 0 and rank == 0:
        learned = ", ".join(f"{weight:.2f}" for weight in theta.detach().sigmoid())
        print(f"epoch {epoch:2d}  loss on clean data {out.value:.3f}  weights of the sources {learned}", flush=True)

distributed.barrier()  # no rank leaves while another one still reads
distributed.destroy_process_group()

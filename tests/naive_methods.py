"""The data-free methods as their formulas stand: dense, full SVDs, autograd, the model as one vector.

Slow on purpose, and no code of the library. A method is a function
``(base, merged, new, t, memory) -> merged`` on dictionaries of float32 tensors; ``memory`` is a dictionary of
its own that lives as long as the run.
"""

import hashlib

import torch

LINEARS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")


def run(method, base, models, **options):
    """θ after every task."""
    merged, memory, history = base, {}, []
    for t, new in enumerate(models, start=1):
        found = method(base, merged, new, t, memory, **options)
        merged = {name: tensor.float() for name, tensor in found.items()}
        history.append(merged)
    return history


def flat(tensors):
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])


def unflat(vector, like):
    found, start = {}, 0
    for name in sorted(like):
        stop = start + like[name].numel()
        found[name] = vector[start:stop].reshape(like[name].shape)
        start = stop
    return found


def ties(base, merged, new, t, memory, scale=0.3, density=0.2):
    theta0, theta, thetat = flat(base), flat(merged), flat(new)
    if t == 1:
        return unflat(theta0 + scale * (thetat - theta0), base)
    trimmed = []
    for vector in (theta - theta0, thetat - theta0):
        kept = vector.abs().topk(int(density * len(vector))).indices
        mask = torch.zeros_like(vector)
        mask[kept] = 1
        trimmed.append(vector * mask)
    elected = torch.stack(trimmed).sum(0).sign()
    merged_sum = sum(v * (v.sign() == elected) for v in trimmed)
    return unflat(theta + scale * merged_sum, base)


def magmax(base, merged, new, t, memory, scale=0.5):
    theta0 = flat(base)
    memory.setdefault("all", []).append(flat(new) - theta0)
    vectors = torch.stack(memory["all"])
    largest = vectors.abs().argmax(0)
    return unflat(theta0 + scale * vectors.gather(0, largest[None])[0], base)


def consensus_ta(base, merged, new, t, memory, scale=0.1, masks="accumulated"):
    theta0, theta, thetat = flat(base), flat(merged), flat(new)
    multi = theta + (thetat - theta0)
    memory.setdefault("masks", []).append((theta0 - thetat).abs() > 0.2 * (multi - thetat).abs())
    if t == 1:
        return unflat(theta0 + scale * (thetat - theta0), base)
    if masks == "newest":
        older = torch.ones_like(theta0)
        consensus = older + memory["masks"][-1] >= 2
    else:
        consensus = torch.stack(memory["masks"]).sum(0) >= 2
    return unflat(theta + scale * consensus * ((theta - theta0) + (thetat - theta0)), base)


def opcm(base, merged, new, t, memory, alpha=0.5, diagonal="removed"):
    delta = {name: new[name].double() - base[name].double() for name in base}
    memory.setdefault("norms", []).append(flat(delta).norm())
    if t == 1:
        memory["lambda"] = 1.0
        return new
    V = {}
    for name in base:
        earlier = merged[name].double() - base[name].double()
        projected = delta[name]
        if name.endswith(LINEARS):
            left, S, right_t = torch.linalg.svd(earlier, full_matrices=True)
            M = left.mT @ delta[name] @ right_t.mT
            s, cumulative = 0, 0.0
            while s < len(S) and cumulative + float(S[s] / S.sum()) <= alpha:
                cumulative += float(S[s] / S.sum())
                s += 1
            M[:s, :s] = 0
            if diagonal == "removed":
                for i in range(len(S)):
                    M[i, i] = 0
            projected = left @ M @ right_t
        V[name] = memory["lambda"] * earlier + projected
    memory["lambda"] = flat(V).norm() / torch.stack(memory["norms"]).mean()
    return {name: base[name].double() + V[name] / memory["lambda"] for name in base}


def linearwise(merge):
    """A rule for Linears on float64 task vectors; pairwise average of everything else."""

    def method(base, merged, new, t, memory, **options):
        found = {}
        for name in base:
            if name.endswith(LINEARS):
                theta0 = base[name].double()
                vectors = merged[name].double() - theta0, new[name].double() - theta0
                found[name] = theta0 + merge(*vectors, t, name, **options)
            else:
                found[name] = new[name] if t == 1 else 0.5 * merged[name] + 0.5 * new[name]
        return found

    return method


@linearwise
def tsv_m(merged, new, t, name, scale=1.0):
    vectors = [new] if t == 1 else [merged / scale, new]
    keep = min(new.shape) // len(vectors)
    parts = [torch.linalg.svd(vector, full_matrices=False) for vector in vectors]
    U = torch.cat([U[:, :keep] for U, _, _ in parts], dim=1)
    S = torch.cat([S[:keep] for _, S, _ in parts])
    V = torch.cat([Vh[:keep].mT for _, _, Vh in parts], dim=1)
    P, _, Qh = torch.linalg.svd(U, full_matrices=False)
    R, _, Th = torch.linalg.svd(V, full_matrices=False)
    return scale * (P @ Qh) @ torch.diag(S) @ (R @ Th).mT


@linearwise
def iso_c(merged, new, t, name, scale=1.0):
    U, S, Vh = torch.linalg.svd(merged / scale + new, full_matrices=False)
    return scale * U @ torch.diag(S.mean().expand(len(S))) @ Vh


def minimised(parameters, loss, steps, lr):
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@linearwise
def wudi(merged, new, t, name, steps=300, lr=1e-5):
    taus = [new] if t == 1 else [merged, new]
    tau = sum(taus).clone().requires_grad_()
    return minimised(
        [tau],
        lambda: sum(((tau - one) @ one.mT).norm() ** 2 / one.norm() ** 2 for one in taus),
        steps,
        lr,
    )[0]


@linearwise
def dop(merged, new, t, name, steps=200, lr=1e-4, energy=0.99999, weight=0.8, ema=0.999):
    if t == 1:
        return new
    W = ((merged + new) / 2).requires_grad_()
    optimizer = torch.optim.Adam([W], lr=lr)
    kept = []
    for vector in (merged, new):
        U, S, Vh = torch.linalg.svd(vector, full_matrices=False)
        k = next(k for k in range(1, len(S) + 1) if S[:k].sum() / S.sum() >= energy)
        kept.append((vector, U[:, :k], torch.diag(S[:k]), Vh[:k].mT))
    for _ in range(steps):
        losses = [(S @ U.mT @ (W - X)).norm() ** 2 + ((W - X) @ V @ S).norm() ** 2 for X, U, S, V in kept]
        one, two = (torch.autograd.grad(loss, W)[0] for loss in losses)
        # The three cases of the min-norm point of a segment (Sener & Koltun 2018, algorithm 1)
        if (one * two).sum() >= (one * one).sum():
            gamma = 1.0
        elif (one * two).sum() >= (two * two).sum():
            gamma = 0.0
        else:
            gamma = float(((two - one) * two).sum() / (one - two).norm() ** 2)
        weight = ema * weight + (1 - ema) * gamma
        W.grad = weight * one + (1 - weight) * two
        optimizer.step()
    return W.detach()


def drawn(seed, name, shape):
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@linearwise
def nufilt_linear(prev, T, t, name, seed, previous_rank, task_rank=8, rank=64, steps=50, lr=1e-3):
    if t == 1:
        return T
    width = T.shape[1]
    Vp = torch.linalg.svd(prev)[2][:previous_rank].mT
    Vt = torch.linalg.svd(T)[2][:task_rank].mT
    P = torch.eye(width, dtype=T.dtype) - Vp @ Vp.mT
    B = torch.zeros(width, rank, dtype=T.dtype).requires_grad_()
    A = (0.02 * drawn(seed, name, (rank, width))).requires_grad_()

    def loss():
        both = prev + T @ P + T @ B @ A
        return ((T @ Vt - both @ Vt) ** 2).sum() + ((prev @ Vp - both @ Vp) ** 2).sum()

    B, A = minimised([B, A], loss, steps, lr)
    return prev + T @ (P + B @ A)


def nufilt(base, merged, new, t, memory, **options):
    found = nufilt_linear(base, merged, new, t, memory, **options)
    touched = {name for name in base if name.endswith(LINEARS) and "fc2" not in name}
    return {name: found[name] if name in touched else base[name] for name in base}


def truncated(matrix, rank):
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] @ torch.diag(S[:rank]) @ Vh[:rank]


def row_space(matrix, rank):
    return torch.linalg.svd(matrix)[2][:rank].mT


def made_it(base, models, deviations, merged):
    """Dense experts ``{linear: {tasks: ΔW}}`` after all models; a shared one has the numbers of its tasks."""
    pools = {name: {} for name in base if name.endswith(LINEARS)}
    for t, new in enumerate(models):
        fresh, affinities = {}, {}
        for name, pool in pools.items():
            delta = new[name].double() - base[name].double()
            rank = int(0.1 * min(delta.shape))
            fresh[name] = truncated(delta, rank)
            V = row_space(fresh[name], rank)
            affinities[name] = {
                tasks: float((torch.linalg.svdvals(row_space(expert, rank).mT @ V) ** 2).mean())
                for tasks, expert in pool.items()
            }
        largest = [max(values.values()) for values in affinities.values() if values]
        mean = sum(largest) / len(largest) if t else 0.0
        variance = sum((value - mean) ** 2 for value in largest) / len(largest) if t else 0.0
        least = min(mean + deviations * variance**0.5, 0.99)
        for name, pool in pools.items():
            delta, tasks = fresh[name], ()
            if t and max(affinities[name].values()) >= least:
                tasks = max(affinities[name], key=affinities[name].get)
                n, other = len(tasks), pool.pop(tasks)
                both = (n * other + delta) / (n + 1) if merged == "mean" else other + delta
                delta = truncated(both, int(0.1 * min(delta.shape)))
            pool[(*tasks, t)] = delta
    return pools

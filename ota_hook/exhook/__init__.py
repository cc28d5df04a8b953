"""The broker's side: EMQX's ExHook calls in, their answers out."""

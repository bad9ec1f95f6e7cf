"""Operations that CPU and GPU compute by algorithms of our own, and the choice of algorithm by platform."""

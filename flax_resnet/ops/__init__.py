"""Operations with algorithms of our own for CPU and GPU, and the choice among algorithms by platform."""

;; The start function outlives its deadline.
;; limits: setup_fuel = 9000000000000000000, setup_milliseconds = 30
;; start: `instantiate` | interrupt
(func $begin (loop $l (br $l)) unreachable)
(start $begin)

;; An endless loop in the start function, before anything is asked.
;; limits: setup_fuel = 20000000
;; start: `instantiate` | all fuel consumed
(func $begin (loop $l (br $l)) unreachable)
(start $begin)

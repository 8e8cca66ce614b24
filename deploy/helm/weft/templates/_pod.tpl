{{/* The pod, the same in a Deployment and a StatefulSet. */}}

{{/* URIs that are fetched before the server starts, as {"uris": […]}. */}}
{{- define "weft.pulled" -}}
{{- $uris := list }}
{{- range .Values.adapters.load }}
{{- if regexMatch "^[a-z0-9]+://" .source }}{{- $uris = append $uris .source }}{{- end }}
{{- end }}
{{- dict "uris" (uniq $uris) | toJson }}
{{- end }}

{{/* Caches, credentials and what the user adds: for the server and for init containers. */}}
{{- define "weft.environment" -}}
env:
  - name: WEFT_CACHE
    value: /cache
  - name: HF_HOME
    value: /cache/huggingface
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.adapters.credentialsSecret }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
{{- end }}

{{- define "weft.probe" -}}
httpGet:
  path: /health
  port: http
{{ toYaml . }}
{{- end }}

{{- define "weft.pod" -}}
metadata:
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  labels:
    {{- include "weft.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "weft.serviceAccountName" . }}
  automountServiceAccountToken: false
  # A Service named `weft` would set WEFT_PORT=tcp://…, which is the variable of --port.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int64 .Values.shutdown.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- $pulled := (include "weft.pulled" . | fromJson).uris }}
  {{- if and $pulled .Values.adapters.pullFirst }}
  initContainers:
    {{- range $index, $uri := $pulled }}
    - name: pull-{{ $index }}
      image: {{ include "weft.image" $ }}
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      args:
        - adapter
        - pull
        - {{ $uri | quote }}
        {{- with $.Values.adapters.downloadMax }}
        - {{ printf "--adapter-download-max=%s" . }}
        {{- end }}
      {{- include "weft.environment" $ | nindent 6 }}
      securityContext:
        {{- toYaml $.Values.securityContext | nindent 8 }}
      resources:
        requests:
          cpu: 100m
          memory: 128Mi
        limits:
          memory: 512Mi
      volumeMounts:
        - name: cache
          mountPath: /cache
        - name: tmp
          mountPath: /tmp
    {{- end }}
  {{- end }}
  containers:
    - name: weft
      image: {{ include "weft.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        {{- include "weft.args" . | trim | nindent 8 }}
      {{- include "weft.environment" . | nindent 6 }}
      ports:
        - name: http
          containerPort: {{ int64 .Values.server.port }}
      startupProbe:
        {{- include "weft.probe" .Values.probes.startup | nindent 8 }}
      readinessProbe:
        {{- include "weft.probe" .Values.probes.readiness | nindent 8 }}
      livenessProbe:
        {{- include "weft.probe" .Values.probes.liveness | nindent 8 }}
      {{- if .Values.shutdown.preStopSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ int64 .Values.shutdown.preStopSeconds }}
      {{- end }}
      terminationMessagePolicy: FallbackToLogsOnError
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: model
          mountPath: {{ .Values.model.mountPath }}
          readOnly: true
        {{- if .Values.adapters.directory.volume }}
        - name: adapters
          mountPath: {{ .Values.adapters.directory.mountPath }}
          readOnly: true
        {{- end }}
        - name: cache
          mountPath: /cache
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: model
      {{- toYaml .Values.model.volume | nindent 6 }}
    {{- with .Values.adapters.directory.volume }}
    - name: adapters
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- if eq .Values.cache.type "emptyDir" }}
    - name: cache
      emptyDir:
        sizeLimit: {{ .Values.cache.size }}
    {{- else if eq .Values.cache.type "existingClaim" }}
    - name: cache
      persistentVolumeClaim:
        claimName: {{ .Values.cache.existingClaim }}
    {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
